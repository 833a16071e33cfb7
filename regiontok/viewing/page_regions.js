// The data of the image or of the frames of a video, and the regions from merge trees and from sources without sliders.

// Data. Arrays are base64-encoded.
const byId = id => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const decode = text => Uint8Array.from(atob(text), char => char.charCodeAt(0)).buffer;
const count = flags => flags.reduce((sum, flag) => sum + flag, 0);
// Patches are numbered in raster order, frame after frame. An image is a single frame.
const [numFrames, rows, cols] = data.grid, frameSize = rows * cols, numPatches = numFrames * frameSize, dim = data.dim;
const frameOf = patch => Math.floor(patch / frameSize);
const isValid = new Uint8Array(decode(data.valid)), numValid = count(isValid);
const colours = new Uint8Array(decode(data.colours));
const scale = new Float32Array(decode(data.scale));
const features = Float32Array.from(new Int8Array(decode(data.features)), (value, i) => value * scale[i % dim]);

// Merge trees: the two regions of each merge, the score after each merge, and the patches that are clustered.
const makeTree = ({ pairs, score }, included) => ({
  pairs: new Uint16Array(decode(pairs)), score: new Float32Array(decode(score)), included, size: count(included),
});
const trees = {};  // by linkage
for (const [linkage, tree] of Object.entries(data.trees)) trees[linkage] = makeTree(tree, isValid);
const maskedTrees = [];  // by mask weight
if (data.masked) {
  const isMasked = new Uint8Array(decode(data.masked.valid));
  for (const tree of data.masked.trees) maskedTrees.push(makeTree(tree, isMasked));
}
const similarity = trees.centroid.score;
// Highest threshold that allows the first merges: their running minimum, because scores are not monotonic.
const highestThreshold = Float32Array.from(similarity);
for (let i = 1; i < highestThreshold.length; i++) {
  highestThreshold[i] = Math.min(highestThreshold[i], highestThreshold[i - 1]);
}

// Regions. Each object has the patches of each region; the mask scores; and for each patch its smallest region (-1 for
// none) and the index of the set of its regions.
function regionsFromPatches(patchesOf, scores) {
  const smallest = new Int32Array(numPatches).fill(-1), regionSet = new Int32Array(numPatches).fill(-1);
  const keys = Array.from({ length: numPatches }, () => ""), setIndex = new Map();
  const bySize = patchesOf.map((_, i) => i).sort((a, b) => patchesOf[b].length - patchesOf[a].length || a - b);
  for (const region of bySize) {
    for (const patch of patchesOf[region]) {
      smallest[patch] = region;
      keys[patch] += region + ",";
    }
  }
  for (let patch = 0; patch < numPatches; patch++) {
    if (!keys[patch]) continue;
    if (!setIndex.has(keys[patch])) setIndex.set(keys[patch], setIndex.size);
    regionSet[patch] = setIndex.get(keys[patch]);
  }
  return { patchesOf, smallest, regionSet, scores };
}

function cutTree({ pairs, included }, merges) {
  const parent = Int32Array.from({ length: numPatches }, (_, i) => i);
  const find = patch => {
    while (parent[patch] !== patch) {
      parent[patch] = parent[parent[patch]];
      patch = parent[patch];
    }
    return patch;
  };
  for (let i = 0; i < merges; i++) {
    const a = find(pairs[2 * i]), b = find(pairs[2 * i + 1]);
    parent[Math.max(a, b)] = Math.min(a, b);
  }
  const labels = new Int32Array(numPatches).fill(-1), rootRegion = new Int32Array(numPatches).fill(-1), patchesOf = [];
  for (let patch = 0; patch < numPatches; patch++) {
    if (!included[patch]) continue;
    const root = find(patch);
    if (rootRegion[root] < 0) {
      rootRegion[root] = patchesOf.length;
      patchesOf.push([]);
    }
    labels[patch] = rootRegion[root];
    patchesOf[labels[patch]].push(patch);
  }
  return { patchesOf, smallest: labels, regionSet: labels, scores: null };
}

const cachedSources = {};  // sources without sliders
function regionsOfSource(name) {
  if (!cachedSources[name]) {
    const source = data.sources[name];
    const patches = new Uint16Array(decode(source.patch)), regionOf = new Uint16Array(decode(source.region));
    const patchesOf = Array.from({ length: source.count }, () => []);
    for (let i = 0; i < patches.length; i++) patchesOf[regionOf[i]].push(patches[i]);
    cachedSources[name] = regionsFromPatches(patchesOf, source.scores);
  }
  return cachedSources[name];
}

// Similarity of regions: the cosine of the sums of features, which equals that of their means.
function norm(vector) {
  let sum = 0;
  for (let d = 0; d < dim; d++) sum += vector[d] * vector[d];
  return Math.sqrt(sum);
}
const featureOf = patch => features.subarray(patch * dim, (patch + 1) * dim);
const patchNorms = Float32Array.from({ length: numPatches }, (_, patch) => norm(featureOf(patch)));
function similarities(regions, region) {
  if (!regions.sums) {
    regions.sums = regions.patchesOf.map(patches => {
      if (patches.length === 1) return featureOf(patches[0]);
      const sum = new Float32Array(dim);
      for (const patch of patches) for (let d = 0, start = patch * dim; d < dim; d++) sum[d] += features[start + d];
      return sum;
    });
    regions.norms = regions.sums.map((sum, i) => {
      const patches = regions.patchesOf[i];
      return patches.length === 1 ? patchNorms[patches[0]] : norm(sum);
    });
  }
  const sum = regions.sums[region], sumNorm = regions.norms[region];
  return regions.sums.map((other, i) => {
    let dot = 0;
    for (let d = 0; d < dim; d++) dot += sum[d] * other[d];
    return sumNorm && regions.norms[i] ? dot / sumNorm / regions.norms[i] : Number(sumNorm === regions.norms[i]);
  });
}
function mostSimilar(region, heat) {
  let best = -1;
  heat.forEach((value, other) => { if (other !== region && (best < 0 || value > heat[best])) best = other; });
  return best;
}
