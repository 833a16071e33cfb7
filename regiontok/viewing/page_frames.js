// The frames of a video: a slider, playback, and marks of the frames that have the selected region.

const isVideo = numFrames > 1, medium = isVideo ? "video" : "image";
const frameSlider = byId("frame"), playButton = byId("play");
const images = data.frames.map(src => Object.assign(new Image(), { src }));  // decoded before they are shown
let timer = null;
function showPresence() {  // the frames in which the selected region is
  if (!isVideo) return;
  const present = new Set(state.region < 0 ? [] : regions.patchesOf[state.region].map(frameOf));
  Array.from(byId("presence").children, (mark, frame) => mark.classList.toggle("present", present.has(frame)));
}
function showFrame(frame, { isFinal = false } = {}) {
  state.frame = (frame + numFrames) % numFrames;
  byId("image").src = images[state.frame].src;
  const seconds = data.times ? `, ${data.times[state.frame].toFixed(2)} s` : "";
  const text = `${state.frame + 1} of ${numFrames}${seconds}`;
  frameSlider.value = state.frame;
  frameSlider.setAttribute("aria-valuetext", text);
  byId("frame-value").textContent = text;
  if (state.cursor >= 0 && !state.isPinned) {  // the region at the same place of the new frame
    state.cursor = state.frame * frameSize + state.cursor % frameSize;
    select(regionAt(state.cursor));
  }
  if (isFinal) {
    updateTable();
    announce(`frame ${text}`);
  }
  requestDraw();
}
function stopPlaying() {
  clearTimeout(timer);
  timer = null;
  playButton.textContent = "Play";
}
function playNext() {
  const next = (state.frame + 1) % numFrames;
  const delay = data.times && next ? 1000 * (data.times[next] - data.times[state.frame]) : 250;
  timer = setTimeout(() => {
    showFrame(next);
    playNext();
  }, Math.min(Math.max(delay, 40), 1000));
}
playButton.addEventListener("click", () => {
  if (timer === null) {
    playButton.textContent = "Pause";
    playNext();
  } else {
    stopPlaying();
    showFrame(state.frame, { isFinal: true });
  }
});
frameSlider.addEventListener("input", () => {
  stopPlaying();
  showFrame(Number(frameSlider.value));
});
frameSlider.addEventListener("change", () => showFrame(Number(frameSlider.value), { isFinal: true }));
if (isVideo) {
  byId("player").hidden = false;
  byId("frame-help").hidden = false;
  byId("all-title").textContent = "Regions in this frame";
  byId("share-title").textContent = "of video";
  frameSlider.max = numFrames - 1;
  byId("presence").append(...images.map(() => document.createElement("span")));
}
