// Drawing of the regions, and controls.

const state = {
  source: "clustering", linkage: "centroid", byThreshold: true, merges: 0, weight: 0, view: "outlines",
  frame: 0, region: -1, cursor: -1, isPinned: false,
};
let regions = null;  // of the current source and cut
const currentTree = () => state.linkage === "masked" ? maskedTrees[state.weight] : trees[state.linkage];

// Drawing
const rampColours = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
function rampColour(fraction) {
  const position = Math.min(Math.max(fraction, 0), 1) * (rampColours.length - 1);
  const low = Math.min(Math.floor(position), rampColours.length - 2);
  return rampColours[low].map((value, i) => Math.round(value + (position - low) * (rampColours[low + 1][i] - value)));
}
byId("ramp").style.background = `linear-gradient(90deg, ${rampColours.map(colour => `rgb(${colour})`).join(",")})`;

const canvas = byId("canvas"), context = canvas.getContext("2d");
let pixelRatio = 1;
function resize() {
  const { width, height } = byId("image").getBoundingClientRect();
  pixelRatio = Math.min(window.devicePixelRatio || 1, 2);
  canvas.width = Math.max(1, Math.round(width * pixelRatio));
  canvas.height = Math.max(1, Math.round(height * pixelRatio));
  requestDraw();
}
// The column of a point is scaleX * x + offsetX for x in [0, 1] across the image; rows likewise.
const [scaleX, offsetX, scaleY, offsetY] = data.placement;
const xOf = col => (col - offsetX) / scaleX * canvas.width, yOf = row => (row - offsetY) / scaleY * canvas.height;
const rowOf = patch => Math.floor(patch % frameSize / cols), colOf = patch => patch % cols;
const shownPatches = function* () {
  for (let patch = state.frame * frameSize; patch < (state.frame + 1) * frameSize; patch++) yield patch;
};
const isShown = patch => frameOf(patch) === state.frame;
function fillPatch(patch, style) {
  const row = rowOf(patch), col = colOf(patch), x = xOf(col), y = yOf(row);
  context.fillStyle = style;
  context.fillRect(x, y, xOf(col + 1) - x + 0.5, yOf(row + 1) - y + 0.5);
}
function addLine(path, row, col, toRow, toCol) {
  path.moveTo(xOf(col), yOf(row));
  path.lineTo(xOf(toCol), yOf(toRow));
}
function outlinePath(labels) {
  const path = new Path2D();
  for (let row = 0; row < rows; row++) {
    for (let col = 0; col < cols; col++) {
      const patch = state.frame * frameSize + row * cols + col;
      if (col + 1 < cols && labels[patch] !== labels[patch + 1]) addLine(path, row, col + 1, row + 1, col + 1);
      if (row + 1 < rows && labels[patch] !== labels[patch + cols]) addLine(path, row + 1, col, row + 1, col + 1);
    }
  }
  return path;
}
function framePath(patches) {
  const path = new Path2D();
  for (const patch of patches) {
    const row = rowOf(patch), col = colOf(patch);
    if (row === 0 || !patches.has(patch - cols)) addLine(path, row, col, row, col + 1);
    if (row === rows - 1 || !patches.has(patch + cols)) addLine(path, row + 1, col, row + 1, col + 1);
    if (col === 0 || !patches.has(patch - 1)) addLine(path, row, col, row + 1, col);
    if (col === cols - 1 || !patches.has(patch + 1)) addLine(path, row, col + 1, row + 1, col + 1);
  }
  return path;
}
function stroke(path, ...lines) {
  context.lineCap = "square";
  for (const [style, width] of lines) {
    context.strokeStyle = style;
    context.lineWidth = width * pixelRatio;
    context.stroke(path);
  }
}
function meanColour(patches) {
  const sum = [0, 0, 0];
  for (const patch of patches) {
    for (let channel = 0; channel < 3; channel++) sum[channel] += colours[3 * patch + channel];
  }
  return `rgb(${sum.map(value => Math.round(value / patches.length))})`;
}
function draw() {
  context.clearRect(0, 0, canvas.width, canvas.height);
  const { patchesOf, smallest, regionSet } = regions, isSelected = state.region >= 0;
  if (state.view === "tokens") {
    regions.means ??= patchesOf.map(meanColour);
    for (const patch of shownPatches()) {
      fillPatch(patch, smallest[patch] < 0 ? "rgb(0 0 0 / 70%)" : regions.means[smallest[patch]]);
    }
  } else if (isSelected) {
    for (const patch of shownPatches()) if (smallest[patch] < 0) fillPatch(patch, "rgb(0 0 0 / 60%)");
  }
  if (isSelected) {
    const selected = new Set(patchesOf[state.region].filter(isShown)), { heat, lowest } = regions;
    const styles = heat.map(value => `rgba(${rampColour((value - lowest) / (1 - lowest || 1))}, 0.72)`);
    for (const patch of shownPatches()) {
      if (smallest[patch] >= 0 && !selected.has(patch)) fillPatch(patch, styles[smallest[patch]]);
    }
    if (state.view !== "image") stroke(outlinePath(regionSet), ["rgb(0 0 0 / 45%)", 1]);
    stroke(framePath(selected), ["#000", 4.5], ["#fff", 2]);
  } else if (state.view !== "image") {
    stroke(outlinePath(regionSet), ["rgb(0 0 0 / 75%)", 2.5], ["#fff", 1]);
  }
}
let isDrawRequested = false;
function requestDraw() {
  if (isDrawRequested) return;
  isDrawRequested = true;
  requestAnimationFrame(() => {
    isDrawRequested = false;
    draw();
  });
}

// Text
const help = byId("help");
const percent = fraction => `${(100 * fraction).toFixed(1)} %`;
function range(noun, values) {  // a region may have more values than a call can have arguments
  const first = values.reduce((a, b) => Math.min(a, b)) + 1, last = values.reduce((a, b) => Math.max(a, b)) + 1;
  return first === last ? `${noun} ${first}` : `${noun}s ${first} to ${last}`;
}
function describe(region, heat) {
  const patches = regions.patchesOf[region], size = patches.length, nearest = mostSimilar(region, heat);
  const lines = [
    `${size} ${size === 1 ? "patch" : "patches"}, ${percent(size / numValid)} of the ${medium}`,
    ...(isVideo ? [`${range("frame", patches.map(frameOf))} of ${numFrames}`] : []),
    `${range("row", patches.map(rowOf))}, ${range("column", patches.map(colOf))}`,
    nearest < 0 ? "no other region" : `most similar: region ${nearest + 1}, ${heat[nearest].toFixed(2)}`,
  ];
  const score = regions.scores && regions.scores[region];
  if (score !== null && score !== undefined) lines.push(`mask score ${score.toFixed(2)}`);
  return lines;
}
function select(region, patch) {
  state.region = region;
  if (patch !== undefined) state.cursor = patch;
  byId("legend").hidden = region < 0;
  if (region < 0) {
    byId("region-name").textContent = state.cursor >= 0 ? "Outside of all regions" : "No region";
    byId("region-details").replaceChildren(help);
  } else {
    regions.heat = similarities(regions, region);
    regions.lowest = Math.min(...regions.heat);
    const lines = describe(region, regions.heat);
    const suffix = state.isPinned ? ", pinned" : "";
    byId("region-name").textContent = `Region ${region + 1} of ${regions.patchesOf.length}${suffix}`;
    const paragraphs = lines.map(textContent => Object.assign(document.createElement("p"), { textContent }));
    byId("region-details").replaceChildren(...paragraphs);
    byId("lowest").textContent = regions.lowest.toFixed(2);
    byId("highest").textContent = "1.00";
  }
  showPresence();
  requestDraw();
}
let announcement = 0;
function announce(text) {  // to screen readers, after a pause so that they do not read every step
  clearTimeout(announcement);
  announcement = setTimeout(() => { byId("status").textContent = text; }, 150);
}
function announceRegion() {
  const lines = Array.from(byId("region-details").querySelectorAll("p:not(#help)"), line => line.textContent);
  announce([byId("region-name").textContent, ...lines].join(". "));
}

function tableRow(region) {
  const heat = similarities(regions, region), nearest = mostSimilar(region, heat);
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: region + 1 });
  button.setAttribute("aria-label", `Show region ${region + 1}`);
  button.addEventListener("click", () => {
    state.isPinned = true;
    select(region, regions.patchesOf[region].find(isShown) ?? regions.patchesOf[region][0]);
    announceRegion();
  });
  const row = document.createElement("tr");
  const size = regions.patchesOf[region].length;
  const similar = nearest < 0 ? "-" : `${nearest + 1} (${heat[nearest].toFixed(2)})`;
  for (const content of [button, size, percent(size / numValid), similar]) {
    const cell = document.createElement("td");
    cell.append(content);
    row.append(cell);
  }
  return row;
}
function updateTable() {
  if (!byId("all").open) return;
  const shown = new Set();
  for (const [region, patches] of regions.patchesOf.entries()) if (!isVideo || patches.some(isShown)) shown.add(region);
  byId("rows").replaceChildren(...Array.from(shown, tableRow));
}

// Show the current state. `isFinal` is false while a slider moves.
function update({ isFinal = false } = {}) {
  const isClustering = state.source === "clustering", tree = currentTree();
  regions = isClustering ? cutTree(tree, state.merges) : regionsOfSource(state.source);
  const numRegions = regions.patchesOf.length;
  byId("clustering").hidden = !isClustering;
  for (const input of document.querySelectorAll("[name=linkage]")) input.checked = input.value === state.linkage;
  updateTokens(tree, numRegions);
  updateWeight();
  updateThreshold(numRegions);
  const explained = percent(state.merges ? tree.score[state.merges - 1] : 1);
  byId("explained-variance").textContent = state.linkage === "centroid" ? "" : `Explained variance: ${explained}`;
  state.isPinned = state.isPinned && state.cursor >= 0;
  select(state.cursor >= 0 && state.region >= 0 ? regions.smallest[state.cursor] : -1);
  if (isFinal) {
    updateTable();
    const linkage = state.linkage === "masked" ? "ward with masks" : state.linkage;
    const source = isClustering ? `clustering (${linkage})` : state.source;
    announce(`${numRegions} tokens from ${source}, instead of ${numValid} patches`);
  }
}
function updateTokens(tree, numRegions) {
  const fraction = `${percent(numRegions / numValid)} of the patches`;
  tokens.min = tree.size - tree.score.length;
  tokens.max = tree.size;
  tokens.value = numRegions;
  tokens.setAttribute("aria-valuetext", `${numRegions} tokens, ${fraction}`);
  byId("tokens-value").textContent = numRegions;
  byId("tokens-fraction").textContent = fraction;
}
function updateWeight() {
  const isMasked = state.linkage === "masked";
  byId("weight-slider").hidden = !isMasked;
  if (!isMasked) return;
  const text = data.masked.weights[state.weight];
  weight.value = state.weight;
  weight.setAttribute("aria-valuetext", text === "inf" ? "infinity" : text);
  byId("weight-value").textContent = text === "inf" ? "∞" : text;
}
function updateThreshold(numRegions) {
  const isCentroid = state.linkage === "centroid", highest = state.merges ? highestThreshold[state.merges - 1] : 1;
  if (!state.byThreshold && isCentroid) threshold.value = highest;
  const value = state.byThreshold ? Number(threshold.value) : highest;
  const text = isCentroid ? value.toFixed(2) : "none";
  byId("threshold-value").textContent = text;
  threshold.setAttribute("aria-valuetext", `${text}, ${isCentroid ? `${numRegions} tokens` : "with Ward linkage"}`);
}

// Controls
const threshold = byId("threshold"), tokens = byId("tokens"), weight = byId("weight");
function cutAtThreshold(value) {
  let merges = 0;
  while (merges < similarity.length && similarity[merges] >= value) merges++;
  Object.assign(state, { linkage: "centroid", byThreshold: true, merges });
}
function cutToTokens(linkage, numRegions) {  // or to the nearest number that the tree can reach
  Object.assign(state, { linkage, byThreshold: false });
  const { size, score } = currentTree();
  state.merges = Math.min(Math.max(size - numRegions, 0), score.length);
}
for (const name of ["clustering", ...Object.keys(data.sources)]) {
  const label = document.createElement("label"), input = document.createElement("input");
  Object.assign(input, { type: "radio", name: "source", value: name, checked: name === "clustering" });
  input.addEventListener("change", () => {
    state.source = name;
    update({ isFinal: true });
  });
  label.append(input, name);
  byId("sources").append(label);
}
for (const input of document.querySelectorAll("[name=view]")) {
  input.addEventListener("change", () => {
    state.view = input.value;
    requestDraw();
  });
}
for (const input of document.querySelectorAll("[name=linkage]")) {  // keep the number of tokens
  input.addEventListener("change", () => {
    cutToTokens(input.value, regions.patchesOf.length);
    update({ isFinal: true });
  });
}
threshold.min = highestThreshold.length ? Math.max(-1, Math.floor(100 * highestThreshold.at(-1)) / 100) : 0;
threshold.max = 1;
threshold.addEventListener("input", () => {
  cutAtThreshold(Number(threshold.value));
  update();
});
tokens.addEventListener("input", () => {
  cutToTokens(state.linkage === "masked" ? "masked" : "ward", Number(tokens.value));
  update();
});
if (data.masked) {
  byId("masked-linkage").hidden = false;
  weight.max = maskedTrees.length - 1;
  state.weight = data.masked.start;
}
weight.addEventListener("input", () => {
  state.weight = Number(weight.value);
  cutToTokens("masked", regions.patchesOf.length);
  update();
});
for (const slider of [threshold, tokens, weight]) slider.addEventListener("change", () => update({ isFinal: true }));
byId("all").addEventListener("toggle", updateTable);

// Selection by pointer and keyboard
const stage = byId("stage");
function patchAt(event) {
  const box = byId("image").getBoundingClientRect();
  const col = Math.floor(scaleX * (event.clientX - box.left) / box.width + offsetX);
  const row = Math.floor(scaleY * (event.clientY - box.top) / box.height + offsetY);
  return row >= 0 && row < rows && col >= 0 && col < cols ? state.frame * frameSize + row * cols + col : -1;
}
const regionAt = patch => patch < 0 ? -1 : regions.smallest[patch];
function moveTo(patch) {
  if (patch !== state.cursor || regionAt(patch) !== state.region) select(regionAt(patch), patch);
}
function clearSelection() {
  Object.assign(state, { isPinned: false, cursor: -1 });
  select(-1);
}
function neighbour([rowStep, colStep]) {
  const start = state.frame * frameSize;
  if (state.cursor < 0) return start + Math.floor(rows / 2) * cols + Math.floor(cols / 2);
  const row = Math.min(Math.max(rowOf(state.cursor) + rowStep, 0), rows - 1);
  const col = Math.min(Math.max(colOf(state.cursor) + colStep, 0), cols - 1);
  const next = start + row * cols + col;
  return isValid[next] ? next : start + state.cursor % frameSize;
}
stage.addEventListener("pointermove", event => { if (!state.isPinned) moveTo(patchAt(event)); });
stage.addEventListener("pointerleave", () => { if (!state.isPinned) clearSelection(); });
stage.addEventListener("click", event => {
  const patch = patchAt(event), region = regionAt(patch);
  state.isPinned = region >= 0 && !(state.isPinned && region === state.region);
  select(region, patch);
  if (region >= 0) announceRegion();
});
const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
stage.addEventListener("keydown", event => {
  if (event.key === "Escape") {
    clearSelection();
    announce("No region");
  } else if (event.key === "Enter" || event.key === " ") {
    if (state.region >= 0) {
      state.isPinned = !state.isPinned;
      select(state.region);
      announceRegion();
    }
  } else if (isVideo && (event.key === "," || event.key === ".")) {
    stopPlaying();
    showFrame(state.frame + (event.key === "," ? -1 : 1), { isFinal: true });
  } else if (steps[event.key]) {
    state.isPinned = false;
    moveTo(neighbour(steps[event.key]));
    announceRegion();
  } else {
    return;
  }
  event.preventDefault();
});

new ResizeObserver(resize).observe(byId("image"));
threshold.value = data.threshold;
if (data.tokens === null) cutAtThreshold(data.threshold);
else cutToTokens("ward", data.tokens);
showFrame(0);
update({ isFinal: true });
resize();
