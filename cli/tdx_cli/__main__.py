"""``python -m tdx_cli``: the command where no script is installed."""

from __future__ import annotations

from tdx_cli.main import main

if __name__ == "__main__":
    main()
