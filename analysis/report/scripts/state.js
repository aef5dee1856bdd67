"use strict";
// What the page shows, as data, and what the reader has chosen, kept in the address after the
// section: #law&run=ab12&budget=1.2e13.
const pageData = JSON.parse(document.getElementById("page-data").textContent);
const pageState = new URLSearchParams();

function readAddress() {
  const parts = location.hash.slice(1).split("&");
  for (const [key, value] of new URLSearchParams(parts.filter((part) => part.includes("=")).join("&"))) pageState.set(key, value);
  return parts.find((part) => part && !part.includes("=")) ?? "";
}

function writeAddress(section) {
  const text = [section, pageState.toString()].filter(Boolean).join("&");
  history.replaceState(null, "", text ? `#${text}` : location.pathname + location.search);
}

// Remember a choice of the reader; null forgets it.
function remember(key, value) {
  const section = readAddress();
  if (value === null) pageState.delete(key);
  else pageState.set(key, value);
  writeAddress(section);
}

const opened = readAddress();
const reloaded = performance.getEntriesByType("navigation")[0]?.type === "reload"; // the browser scrolls to where it was
if (opened && pageState.size && !reloaded) document.getElementById(opened)?.scrollIntoView();
window.addEventListener("hashchange", () => writeAddress(readAddress())); // links to sections drop the state
