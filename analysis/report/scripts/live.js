"use strict";
// The page of a study that is going on reloads itself; that of its end lacks this script.
{ // a scope of its own, as all scripts share one
  const RELOAD_SECONDS = 15;
  const REST_SECONDS = 5; // without a touch of the reader before a reload
  const TRUST_SECONDS = 3600; // running studies write their page at least every few minutes

  const banner = document.getElementById("live");
  const words = banner.querySelector("p");
  const button = banner.querySelector("button");
  const loaded = Date.now();
  const age = () => Date.now() / 1000 - Number(banner.dataset.written);
  let paused = false;
  let touched = 0;
  let held = false; // a mouse button or a finger is down

  const typing = () => document.activeElement?.matches("input, select, textarea") ?? false;
  const selecting = () => !(document.getSelection()?.isCollapsed ?? true);
  const busy = () => held || typing() || selecting() || document.querySelector("dialog[open]") !== null || Date.now() - touched < 1000 * REST_SECONDS;

  for (const kind of ["pointermove", "pointerdown", "keydown", "wheel", "scroll", "touchmove"]) {
    window.addEventListener(kind, () => { touched = Date.now(); }, { passive: true, capture: true });
  }
  window.addEventListener("pointerdown", () => { held = true; });
  for (const kind of ["pointerup", "pointercancel", "blur"]) window.addEventListener(kind, () => { held = false; });

  // What the address does not hold survives in the history entry.
  function reload() {
    const chosen = [...document.querySelectorAll('.tabs [aria-selected="true"]')].map((tab) => tab.getAttribute("aria-controls"));
    history.replaceState({ tabs: chosen }, "");
    location.reload();
  }

  const tabs = history.state?.tabs ?? [];
  document.addEventListener("DOMContentLoaded", () => {
    touched = 0;
    for (const key of tabs) {
      const tab = document.querySelector(`.tabs [aria-controls="${CSS.escape(key)}"]`);
      if (tab?.getAttribute("aria-selected") === "false") tab.click();
    }
  });

  function tell() {
    const stale = age() > TRUST_SECONDS;
    const then = new Date(1000 * Number(banner.dataset.written)).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    const how = stale ? "not renewed for an hour or more: the study may have stopped" : paused ? "reloading is paused" : "this page reloads itself";
    const text = `As of ${then}: ${banner.dataset.words || "the study is running"}; ${how}.`;
    if (words.textContent !== text) words.textContent = text; // screen readers read out every change
    banner.classList.toggle("stale", stale);
    button.textContent = stale ? "Reload" : paused ? "Resume" : "Pause";
    return stale;
  }

  button.addEventListener("click", () => {
    if (age() > TRUST_SECONDS) return reload();
    paused = !paused;
    button.blur();
    tell();
  });

  tell();
  setInterval(() => {
    if (!tell() && !paused && !busy() && Date.now() - loaded > 1000 * RELOAD_SECONDS) reload();
  }, 1000);
}
