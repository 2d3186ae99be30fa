// The forward pass for one block of queries: all logits, their extremes, then weights and the values they mix.

#pragma once

#include <limits>

#include "worker.h"

template <typename scalar_t>
class Forward : Worker<scalar_t> {
  using typename Worker<scalar_t>::T;
  using typename Worker<scalar_t>::S;
  using typename Worker<scalar_t>::Lanes;
  using Integer = typename S::Integer;

 public:
  explicit Forward(const Problem& problem)
      : Worker<scalar_t>(problem, QUERIES, QUERIES * S::whole(problem.dim)),
        logits(this->take(problem.tokens * QUERIES)),
        attended(this->take(QUERIES * this->padded)) {}

  using Worker<scalar_t>::load_head;

  void attend(int64_t first, int64_t number, const Head<scalar_t>& target, Summary<T>* summaries) {
    this->load_queries(first, number);
    for (auto& extremes : extremes_of) extremes = Extremes();
    this->for_each_tile([&](Kind kind, int64_t key, int64_t size) {
      this->multiply_across(size, this->keys + key * this->padded, this->queries_across, logits + key * QUERIES);
      find_extremes(extremes_of[kind], key, size);
    });
    modulate(summaries + first);
    this->for_each_tile([&](Kind kind, int64_t key, int64_t size) {
      weigh(kind, logits + key * QUERIES, size);
      multiply<T>(this->count, this->padded, size, {logits + key * QUERIES, 1, QUERIES},
                  this->values + key * this->padded, this->padded, attended, this->padded, key > 0);
    });
    for (int64_t i = 0; i < number; ++i) {
      const T factor = 1 / total[i];
      summaries[first + i].normalizer += std::log(total[i]);
      for (int64_t d = 0; d < this->p.dim; ++d)
        target[first + i][d] = static_cast<scalar_t>(attended[i * this->padded + d] * factor);
    }
  }

 private:
  static constexpr T INFINITE = std::numeric_limits<T>::infinity();
  struct alignas(VECTOR_BYTES) Extremes {
    T highest[QUERIES], lowest[QUERIES];
    Integer highest_key[QUERIES], lowest_key[QUERIES];
    Extremes() {
      std::fill_n(highest, QUERIES, -INFINITE);
      std::fill_n(lowest, QUERIES, INFINITE);
      std::fill_n(highest_key, QUERIES, 0);
      std::fill_n(lowest_key, QUERIES, 0);
    }
  };

  void find_extremes(Extremes& found, int64_t first, int64_t size) {
    for (int64_t i = 0; i < this->lanes; i += S::width) {
      auto highest = S::at(found.highest + i), lowest = S::at(found.lowest + i);
      auto highest_key = S::at(found.highest_key + i), lowest_key = S::at(found.lowest_key + i);
      for (int64_t key = first; key < first + size; ++key) {
        const auto logit = S::at(logits + key * QUERIES + i);
        const auto above = logit > highest, below = logit < lowest;
        highest = above ? logit : highest;
        lowest = below ? logit : lowest;
        highest_key = above ? Integer(key) - typename S::Integers{} : highest_key;
        lowest_key = below ? Integer(key) - typename S::Integers{} : lowest_key;
      }
      S::at(found.highest + i) = highest;
      S::at(found.lowest + i) = lowest;
      S::at(found.highest_key + i) = highest_key;
      S::at(found.lowest_key + i) = lowest_key;
    }
  }

  // From the extremes of the rows to exponents of 2, at most 0.
  void modulate(Summary<T>* summaries) {
    const auto& [front, back] = extremes_of;
    for (int64_t i = 0; i < this->lanes; ++i) {
      const bool high_in_back = back.highest[i] > front.highest[i], low_in_back = back.lowest[i] < front.lowest[i];
      const T highest = high_in_back ? back.highest[i] : front.highest[i];
      const T lowest = low_in_back ? back.lowest[i] : front.lowest[i];
      T most = -INFINITE;
      for (const Kind kind : {FOREGROUND, BACKGROUND}) {
        const auto& found = extremes_of[kind];
        const T slope = this->slope(i, kind), constant = this->constant(i, kind, highest, lowest);
        steepness[kind][i] = slope * T(LOG2_E);
        shift[kind][i] = constant;
        if (found.highest[i] >= found.lowest[i])
          most = std::max(most, std::max(slope * found.highest[i], slope * found.lowest[i]) + constant);
      }
      for (auto& of_kind : shift) of_kind[i] = (of_kind[i] - most) * T(LOG2_E);
      total[i] = 0;
      if (i < this->count)
        summaries[i] = {most, highest, lowest, T(high_in_back ? back.highest_key[i] : front.highest_key[i]),
                        T(low_in_back ? back.lowest_key[i] : front.lowest_key[i])};
    }
  }

  void weigh(Kind kind, T* tile, int64_t size) {
    for (int64_t i = 0; i < this->lanes; i += S::width) {
      const auto steep = steepness[kind].at(i), offset = shift[kind].at(i);
      auto sum = total.at(i);
      for (int64_t key = 0; key < size; ++key) {
        auto& weight = S::at(tile + key * QUERIES + i);
        weight = S::power_of_two(weight * steep + offset);
        sum += weight;
      }
      total.at(i) = sum;
    }
  }

  T *logits, *attended;
  Extremes extremes_of[2];
  Lanes steepness[2], shift[2], total;
};
