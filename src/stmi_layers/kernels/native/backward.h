// The backward pass for one block of queries: the weights are made again, tile by tile, and used up at once.

#pragma once

#include "worker.h"

template <typename scalar_t>
class Backward : Worker<scalar_t> {
  using typename Worker<scalar_t>::T;
  using typename Worker<scalar_t>::S;
  using typename Worker<scalar_t>::Lanes;

 public:
  explicit Backward(const Problem& problem)
      : Worker<scalar_t>(problem, 2 * S::whole(problem.dim),
                         QUERIES * (2 * S::whole(problem.dim) + problem.dim + 2 * KEYS)),
        grad_keys(this->take(problem.tokens * this->padded)),
        grad_values(this->take(problem.tokens * this->padded)),
        grads(this->take(QUERIES * this->padded)),
        grad_queries(this->take(QUERIES * this->padded)),
        grads_across(this->take(QUERIES * problem.dim)),
        weights(this->take(QUERIES * KEYS)),
        grad_logits(this->take(QUERIES * KEYS)) {}

  void load_head(int64_t number) {
    Worker<scalar_t>::load_head(number);
    std::fill_n(grad_keys, this->p.tokens * this->padded, T(0));
    std::fill_n(grad_values, this->p.tokens * this->padded, T(0));
    grad_up = grad_down = 0;
  }

  void differentiate(int64_t first, int64_t number, const Head<const scalar_t>& grad_output,
                     const Head<const scalar_t>& output, const Summary<T>* summaries, const Head<scalar_t>& target) {
    const int64_t padded = this->padded;
    this->load_queries(first, number);
    this->load_rows(grad_output, 1, grads, grads_across);
    modulate(output, summaries + first);
    this->for_each_tile([&](Kind kind, int64_t key, int64_t size) {
      const T* keys = this->keys + key * padded;
      this->multiply_across(size, keys, this->queries_across, weights);
      this->multiply_across(size, this->values + key * padded, grads_across, grad_logits);
      differentiate_tile(kind, size);
      T *of_keys = grad_keys + key * padded, *of_values = grad_values + key * padded;
      multiply<T>(size, padded, number, {weights, QUERIES, 1}, grads, padded, of_values, padded, true);
      multiply<T>(size, padded, number, {grad_logits, QUERIES, 1}, this->queries, padded, of_keys, padded, true);
      multiply<T>(number, padded, size, {grad_logits, 1, QUERIES}, keys, padded, grad_queries, padded, key > 0);
    });
    for (int64_t i = 0; i < number; ++i) {
      add_gradient_of_extremes(i, summaries[first + i]);
      for (int64_t d = 0; d < this->p.dim; ++d)
        target[first + i][d] = static_cast<scalar_t>(grad_queries[i * padded + d] * T(this->p.scale));
    }
  }

  void store(const Head<scalar_t>& grad_key, const Head<scalar_t>& grad_value, T& grad_alpha, T& grad_beta) {
    for (int64_t n = 0; n < this->p.tokens; ++n)
      for (int64_t d = 0; d < this->p.dim; ++d) {
        grad_key[this->order[n]][d] = static_cast<scalar_t>(grad_keys[n * this->padded + d]);
        grad_value[this->order[n]][d] = static_cast<scalar_t>(grad_values[n * this->padded + d]);
      }
    grad_alpha = grad_up;
    grad_beta = grad_down;
  }

 private:
  void modulate(const Head<const scalar_t>& output, const Summary<T>* summaries) {
    for (int64_t i = 0; i < this->lanes; ++i) {
      // A lane without a query has gradient zero, whatever its weights.
      const Summary<T> row = i < this->count ? summaries[i] : Summary<T>();
      for (const Kind kind : {FOREGROUND, BACKGROUND}) {
        slopes[kind][i] = i < this->count ? this->slope(i, kind) : 0;
        const T constant = i < this->count ? this->constant(i, kind, row.highest, row.lowest) : 0;
        shift[kind][i] = (constant - row.normalizer) * T(LOG2_E);
        moment[kind][i] = 0;
      }
      total[i] = delta[i] = 0;
    }
    T* outputs = grad_queries;
    this->load(output, this->count, [&](int64_t i) { return this->start + i; }, 1, outputs);
    for (int64_t i = 0; i < this->count; ++i) {
      typename S::Vector products{};
      for (int64_t d = i * this->padded; d < (i + 1) * this->padded; d += S::width)
        products += S::at(grads + d) * S::at(outputs + d);
      for (int64_t lane = 0; lane < S::width; ++lane) delta[i] += products[lane];
    }
  }

  // Logits become weights, and gradients of the weights become those of the logits, but for what the extremes get.
  void differentiate_tile(Kind kind, int64_t size) {
    for (int64_t i = 0; i < this->lanes; i += S::width) {
      const auto slope = slopes[kind].at(i), offset = shift[kind].at(i), mean = delta.at(i);
      const auto steep = slope * T(LOG2_E);
      auto sum = typename S::Vector{}, sum_of_products = typename S::Vector{};
      for (int64_t key = 0; key < size; ++key) {
        auto& weight = S::at(weights + key * QUERIES + i);
        auto& grad = S::at(grad_logits + key * QUERIES + i);
        const auto logit = weight;
        weight = S::power_of_two(logit * steep + offset);
        const auto of_modulated = weight * (grad - mean);
        sum += of_modulated;
        sum_of_products += of_modulated * logit;
        grad = of_modulated * slope;
      }
      moment[kind].at(i) += sum_of_products;
      if (kind == BACKGROUND) total.at(i) += sum;
    }
  }

  // The constant of a foreground row moves with its highest and its lowest logit.
  void add_gradient_of_extremes(int64_t i, const Summary<T>& row) {
    grad_down -= moment[BACKGROUND][i];
    (this->mask[this->start + i] ? grad_up : grad_down) -= moment[FOREGROUND][i];
    if (!this->mask[this->start + i]) return;
    grad_up -= double(total[i]) * row.highest;
    grad_down += double(total[i]) * row.lowest;
    const T of_highest = -this->up * total[i], of_lowest = this->down * total[i];
    const int64_t high = int64_t(row.highest_key) * this->padded, low = int64_t(row.lowest_key) * this->padded;
    for (int64_t d = 0; d < this->p.dim; ++d) {
      grad_queries[i * this->padded + d] += of_highest * this->keys[high + d] + of_lowest * this->keys[low + d];
      grad_keys[high + d] += of_highest * this->queries[i * this->padded + d];
      grad_keys[low + d] += of_lowest * this->queries[i * this->padded + d];
    }
  }

  T *grad_keys, *grad_values, *grads, *grad_queries, *grads_across, *weights, *grad_logits;
  double grad_up, grad_down;
  Lanes slopes[2], shift[2], moment[2], total, delta;
};
