// A page puts a whole file.
const content = await (await fetch("/content")).blob();
const put = await fetch("RECEIVER/files/whole.bin", {
  method: "PUT",
  headers: { "Upload-Draft-Interop-Version": "8", "Upload-Complete": "?1" },
  body: content,
});
return { status: put.status, location: put.headers.get("Location"), receipt: await put.json() };
