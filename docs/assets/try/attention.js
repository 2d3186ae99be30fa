// SFM as equations 3-8 write it, for one query: what `modulated_attention` of the library returns for the identity as values.

// One row of weights per head. `query` and `key` are (heads, tokens, width) in row order, `foreground` is Boolean per token.
export function weightsOfQuery({ query, key, heads, tokens, width }, i, foreground, alpha, beta) {
  return Array.from({ length: heads }, (_, head) => {
    const row = (array, token) => array.subarray((head * tokens + token) * width, (head * tokens + token + 1) * width);
    const logits = Array.from({ length: tokens }, (_, j) => dot(row(query, i), row(key, j)) / Math.sqrt(width));
    return softmax(modulate(logits, foreground, i, alpha, beta));
  });
}

function modulate(logits, foreground, i, alpha, beta) {
  const most = Math.max(...logits);
  const least = Math.min(...logits);
  return logits.map((logit, j) =>
    foreground[i] && foreground[j] ? logit + alpha * (most - logit) : logit - beta * (logit - least),
  );
}

function softmax(logits) {
  const most = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - most));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

export function meanOfRows(rows) {
  return rows[0].map((_, j) => rows.reduce((sum, row) => sum + row[j], 0) / rows.length);
}

export function dot(a, b) {
  return a.reduce((sum, value, k) => sum + value * b[k], 0);
}
