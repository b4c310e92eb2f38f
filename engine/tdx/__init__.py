"""tdx: point-to-point file transfer over private networks."""
