"use strict";
// Light and dark, and the audio players. What it cannot do without stands in the page already.

const embedded = (id) => JSON.parse(document.getElementById(id)?.textContent ?? "null");
const clips = embedded("clips") ?? {};

const clipUrls = new Map();
function clipUrl(segmentId) {
  if (!clipUrls.has(segmentId)) {
    const bytes = Uint8Array.from(atob(clips[segmentId]), (char) => char.charCodeAt(0));
    clipUrls.set(segmentId, URL.createObjectURL(new Blob([bytes], { type: "audio/mpeg" })));
  }
  return clipUrls.get(segmentId);
}

// one player at a time
document.addEventListener("play", (event) => {
  for (const audio of document.querySelectorAll("audio")) if (audio !== event.target) audio.pause();
}, true);

for (const audio of document.querySelectorAll("audio[data-clip]")) audio.src = clipUrl(audio.dataset.clip);

{
  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const remembered = (theme) => {
    try {
      if (theme) localStorage.setItem("fusion-report-theme", theme);
      return localStorage.getItem("fusion-report-theme");
    } catch {
      return null; // some browsers keep nothing for files
    }
  };
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const show = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
    document.dispatchEvent(new Event("themechange"));
  };
  const before = remembered();
  if (before === "dark" || before === "light") root.dataset.theme = before;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remembered(root.dataset.theme);
    show();
  });
  dark.addEventListener("change", show);
  button.hidden = false;
  show();
}
