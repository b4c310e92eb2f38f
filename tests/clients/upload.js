// A page uploads in the resumable way: creates, appends, aborts, asks, goes on, and completes.
const content = await (await fetch("/content")).blob();
const files = "RECEIVER/files/from a page.bin";
const version = { "Upload-Draft-Interop-Version": "8" };
const part = { ...version, "Content-Type": "application/partial-upload" };
const names = ["Upload-Offset", "Upload-Complete", "Upload-Length", "Upload-Limit"];
const said = (answer) => ({
  status: answer.status,
  ...Object.fromEntries(names.map((name) => [name, answer.headers.get(name)])),
});

// The rest of it, aborted once this many bytes are on their way: null then.
const finish = (target, offset, enough) =>
  new Promise((done) => {
    const request = new XMLHttpRequest();
    request.open("PATCH", target);
    const fields = { ...part, "Upload-Offset": offset, "Upload-Complete": "?1" };
    for (const [name, value] of Object.entries(fields)) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => {
      if (event.loaded >= enough) request.abort();
    };
    request.onabort = request.onerror = () => done(null);
    request.onload = () =>
      done({ status: request.status, complete: request.getResponseHeader("Upload-Complete") });
    request.send(content.slice(offset));
  });

const options = await fetch("RECEIVER/files/", { method: "OPTIONS" });
const created = await fetch(files, {
  method: "POST",
  headers: { ...version, "Upload-Complete": "?0", "Upload-Length": content.size },
});
const target = new URL(created.headers.get("Location"), files);
const append = (offset, end) =>
  fetch(target, {
    method: "PATCH",
    headers: { ...part, "Upload-Offset": offset, "Upload-Complete": "?0" },
    body: content.slice(offset, end),
  });
const first = await append(0, 1000);
const wrong = await append(5, 10);
const offsets = [];
let last = null;
while (last === null && offsets.length < 20) {
  const asked = await fetch(target, { method: "HEAD", headers: version });
  offsets.push(Number(asked.headers.get("Upload-Offset")));
  last = await finish(target, offsets.at(-1), ENOUGH);
}
const asked = await fetch(target, { method: "HEAD", headers: version });
return {
  options: said(options),
  created: said(created),
  first: said(first),
  wrong: said(wrong),
  problem: await wrong.json(),
  asked: said(asked),
  last,
  offsets,
};
