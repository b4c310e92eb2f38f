// What a page can send without asking, and cannot read the answer to.
const blind = { mode: "no-cors" };
const quiet = { ...blind, referrerPolicy: "no-referrer" };
await attempt("blind post", "POST", "/files/evil", {}, blind);
await attempt("quiet post", "POST", "/files/evil", {}, quiet);
await attempt("quiet commit", "POST", "/uploads/ID/commit", {}, quiet);
navigator.sendBeacon("RECEIVER/files/evil", "evil");
for (const enctype of ["text/plain", "multipart/form-data", "application/x-www-form-urlencoded"]) {
  const frame = Object.assign(document.createElement("iframe"), { name: enctype });
  document.body.appendChild(frame);
  const form = document.body.appendChild(document.createElement("form"));
  Object.assign(form, { method: "post", enctype, target: frame.name, action: "RECEIVER/files/evil" });
  form.appendChild(Object.assign(document.createElement("input"), { name: "evil", value: "evil" }));
  form.submit();
}
