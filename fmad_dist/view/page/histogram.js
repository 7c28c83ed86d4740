// How many images have which score, on both sides of the threshold.
const BARS = 80;

export function drawHistogram(canvas, data, threshold) {
  const { low, high } = data.scale;
  const width = high - low || 1;
  const counts = new Array(BARS).fill(0);
  for (const value of data.values) {
    if (value !== null) counts[Math.max(0, Math.min(BARS - 1, Math.floor(((value - low) / width) * BARS)))] += 1;
  }
  const ratio = devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * ratio;
  canvas.height = canvas.clientHeight * ratio;
  const style = getComputedStyle(canvas);
  const context = canvas.getContext("2d");
  const most = Math.max(...counts, 1);
  const step = canvas.width / BARS;
  counts.forEach((count, bar) => {
    if (!count) return;
    const height = Math.max(2 * ratio, (Math.sqrt(count / most)) * canvas.height); // the root, so that few are seen beside many
    const middle = low + ((bar + 0.5) / BARS) * width;
    context.fillStyle = style.getPropertyValue(middle > threshold ? "--anomalous" : "--normal");
    context.fillRect(bar * step, canvas.height - height, Math.max(1, step - ratio), height);
  });
  context.fillStyle = style.getPropertyValue("--ink");
  context.fillRect(((threshold - low) / width) * canvas.width - ratio / 2, 0, ratio, canvas.height);
}
