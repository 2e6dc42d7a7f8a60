// A part's page: arrows to its neighbours; an overlay that is not there any more goes out of the way.
import { $, onKey } from "./common.js";
import "./stack.js";

for (const over of document.querySelectorAll(".over")) {
  const gone = () => over.remove();
  if (over.complete && !over.naturalWidth) gone();
  else over.addEventListener("error", gone);
}

onKey((key) => {
  const link = key === "ArrowLeft" ? $("#older") : key === "ArrowRight" ? $("#newer") : null;
  if (key === "Escape") location.href = "/";
  if (link) location.href = link.href;
  return Boolean(link);
});
