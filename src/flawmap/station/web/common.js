// What all pages share: forms that post JSON, the list of shortcuts, "/" for the search.

export const $ = (query, from = document) => from.querySelector(query);

/** A key pressed for the page, not for a field. Modifier keys are the browser's. */
export function onKey(handler) {
  document.addEventListener("keydown", (event) => {
    const field = event.target.closest("input:not([type=checkbox], [type=radio], [type=range]), textarea, select, dialog[open]");
    const slides = event.target.closest("input[type=range]") && event.key.startsWith("Arrow");
    const acts = event.target.closest("a, button") && (event.key === "Enter" || event.key === " ");
    if (field || slides || acts || event.ctrlKey || event.metaKey || event.altKey) return;
    if (handler(event.key) === true) event.preventDefault();
  });
}

/** fetch with JSON both ways; throws an Error that says what the station said. */
export async function post(url, body) {
  let answer;
  try {
    answer = await fetch(url, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      credentials: "same-origin",
    });
  } catch {
    throw new Error("The station cannot be reached: nothing was done.");
  }
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said(found) || `The station refused: ${answer.status}.`);
  return found;
}

function said(found) {
  const detail = found.detail ?? found.error ?? found.message ?? found.reason;
  if (Array.isArray(detail)) return detail.map((one) => one.msg ?? String(one)).join("; ");
  return typeof detail === "object" && detail ? (detail.reason ?? detail.message ?? JSON.stringify(detail)) : detail;
}

for (const form of document.querySelectorAll("form[data-post]")) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (form.dataset.sure && !window.confirm(form.dataset.sure)) return;
    const told = $(".told", form);
    const button = $("button", form);
    button.disabled = true;
    told.className = "told";
    told.textContent = "…";
    try {
      const found = await post(form.dataset.post, Object.fromEntries(new FormData(form)));
      told.textContent = found.reason ?? found.message ?? "Done.";
      if (form.dataset.done === "reload") location.reload();
    } catch (error) {
      told.className = "told bad";
      told.textContent = error.message;
    } finally {
      button.disabled = false;
    }
  });
}

for (const button of document.querySelectorAll("[data-opens]")) {
  button.addEventListener("click", () => document.getElementById(button.dataset.opens).showModal());
}

onKey((key) => {
  if (key === "?") {
    $("#keys").showModal();
    return true;
  }
  if (key !== "/") return false;
  const search = $("#search");
  if (search) search.focus();
  else location.href = "/history#search";
  return true;
});

if (location.hash === "#search") $("#search")?.focus();
