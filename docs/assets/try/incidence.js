// Which nodes share a hyperedge, and statistics of that: as `similarity_incidence` and `incidence_statistics` of the library.
import { dot } from "./attention.js";

// Cosine of every pair of rows of `nodes`.
export function cosines(nodes) {
  const norms = nodes.map((node) => Math.sqrt(dot(node, node)));
  return nodes.map((a, i) => nodes.map((b, j) => dot(a, b) / (norms[i] * norms[j])));
}

// True where node i is in hyperedge j; absent nodes are in none.
export function incidenceOf(similarities, threshold, present) {
  return similarities.map((row, i) =>
    row.map((cosine, j) => present[i] && present[j] && (i === j || cosine >= threshold)),
  );
}

// Empty hyperedges and nodes in no hyperedge do not count; without any the numbers are 0.
export function statistics(incidence, modalityOf) {
  const edges = incidence.map((_, j) => incidence.flatMap((row, i) => (row[j] ? [i] : []))).filter((edge) => edge.length);
  const members = new Set(edges.flat());
  const joined = new Set(edges.filter((edge) => edge.length > 1).flat());
  const crossing = edges.filter((edge) => new Set(edge.map(modalityOf)).size > 1);
  const share = (part, whole) => part / Math.max(whole, 1);
  return {
    size: share(edges.reduce((sum, edge) => sum + edge.length, 0), edges.length),
    isolated: share(members.size - joined.size, members.size),
    crossModal: share(crossing.length, edges.length),
  };
}
