// Uploads with tus-js-client as the JSON in the first argument says; tells what happens, a line of JSON each.
// SIGTERM aborts the upload, for good with "terminate".
"use strict";

const fs = require("fs");
const tus = require("tus-js-client");

const { file, store, resume, terminate, ...options } = JSON.parse(process.argv[2]);
const tell = (event, more) => console.log(JSON.stringify({ event, ...more }));

const upload = new tus.Upload(file === undefined ? process.stdin : fs.createReadStream(file), {
  retryDelays: null,
  storeFingerprintForResuming: store !== undefined,
  urlStorage: store === undefined ? undefined : new tus.FileUrlStorage(store),
  ...options,
  onUploadUrlAvailable: () => tell("url", { url: upload.url }),
  onChunkComplete: (size, accepted) => tell("chunk", { size, accepted }),
  onAfterResponse: (request, response) =>
    tell("answer", { method: request.getMethod(), status: response.getStatus() }),
  onSuccess: () => tell("success", {}),
  onError: (error) => {
    tell("error", { message: String(error) });
    process.exitCode = 1;
  },
});

process.on("SIGTERM", async () => {
  await upload.abort(terminate === true);
  tell("aborted", {});
  process.exit(0);
});

(async () => {
  if (resume) {
    const previous = await upload.findPreviousUploads();
    tell("previous", { urls: previous.map((each) => each.uploadUrl) });
    upload.resumeFromPreviousUpload(previous[0]);
  }
  upload.start();
})();
