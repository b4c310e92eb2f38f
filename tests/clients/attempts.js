// A page tries what it must not do. What becomes of each try: a status, or why none can be read.
const found = {};
const attempt = async (name, method, target, fields = {}, more = {}) => {
  const body = ["GET", "HEAD", "OPTIONS", "DELETE"].includes(method) ? undefined : "evil";
  try {
    const answer = await fetch("RECEIVER" + target, { method, headers: fields, body, ...more });
    found[name] = answer.type === "opaque" ? "opaque" : answer.status;
  } catch (error) {
    found[name] = error.name;
  }
};
const append = { "Content-Type": "application/partial-upload", "Upload-Offset": "4", "Upload-Complete": "?1" };
await attempt("put", "PUT", "/files/evil");
await attempt("put over", "PUT", "/files/there", { "Tdx-Conflict": "overwrite" });
await attempt("post", "POST", "/files/evil", { "Upload-Complete": "?1" });
await attempt("simple post", "POST", "/files/evil");
await attempt("bundle", "POST", "/files", { "Content-Type": "application/vnd.tdx.bundle" });
await attempt("append", "PATCH", "/uploads/ID", append);
await attempt("delete", "DELETE", "/uploads/ID");
await attempt("head", "HEAD", "/uploads/ID");
await attempt("get", "GET", "/uploads/ID");
await attempt("options", "OPTIONS", "/files/");
