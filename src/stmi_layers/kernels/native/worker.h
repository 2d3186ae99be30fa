// What both passes of modulated attention share: a thread's buffers, the keys of one head, a block of its queries.
//
// The keys of a head are sorted into foreground and background. A block of queries lies across the lanes of vectors, so
// that all which concerns a row of logits is done without crossing lanes. A class of keys has one slope and one
// constant per row: a logit A becomes the weight exp(slope * A + constant - normalizer).

#pragma once

#include <ATen/OpMathType.h>
#include <ATen/core/Tensor.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "vectors.h"

// Queries and keys of a tile of logits, which stays in the first cache.
constexpr int64_t QUERIES = 48;
constexpr int64_t KEYS = 120;
constexpr double LOG2_E = 1.4426950408889634;

enum Kind { FOREGROUND, BACKGROUND };

// What the backward pass needs to know of a row of logits; keys are exact in float32 up to 2^24 of them.
template <typename T>
struct Summary {
  T normalizer, highest, lowest, highest_key, lowest_key;
};

// The tokens of one head of one sample, dense along head_dim.
template <typename scalar_t>
struct Head {
  scalar_t* data;
  int64_t stride;

  Head(const at::Tensor& tensor, int64_t head)
      : data(const_cast<scalar_t*>(tensor.const_data_ptr<std::remove_const_t<scalar_t>>()) +
             head / tensor.size(1) * tensor.stride(0) + head % tensor.size(1) * tensor.stride(1)),
        stride(tensor.stride(2)) {}

  scalar_t* operator[](int64_t token) const { return data + token * stride; }
};

// The arguments of the function, checked, and in a layout that the workers can read.
struct Problem {
  const at::Tensor query, key, value, foreground, alpha, beta;
  const double scale;
  const int64_t batch = query.size(0), heads = query.size(1), tokens = query.size(2), dim = query.size(3);
  const int64_t all_heads = batch * heads;

  Problem(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, const at::Tensor& foreground,
          const at::Tensor& alpha, const at::Tensor& beta, double scale)
      : query(dense(query)),
        key(dense(key)),
        value(dense(value)),
        foreground(foreground.contiguous()),
        alpha(alpha.contiguous()),
        beta(beta.contiguous()),
        scale(scale) {
    TORCH_CHECK(key.sizes() == query.sizes() && value.sizes() == query.sizes(),
                "query, key and value must have one shape; received ", query.sizes(), ", ", key.sizes(), ", ",
                value.sizes());
    TORCH_CHECK(foreground.sizes() == at::IntArrayRef({batch, tokens}), "foreground must be batch x tokens; received ",
                foreground.sizes());
    TORCH_CHECK(alpha.numel() == heads && beta.numel() == heads, "alpha and beta must have one entry per head");
  }

  static at::Tensor dense(const at::Tensor& tensor) { return tensor.stride(-1) == 1 ? tensor : tensor.contiguous(); }
};

// What both passes do, in one thread: buffers, the keys of a head in their order, a block of its queries.
template <typename scalar_t>
class Worker {
 protected:
  using T = at::opmath_type<scalar_t>;
  using S = Simd<T>;
  struct alignas(VECTOR_BYTES) Lanes {
    T data[QUERIES];
    T& operator[](int64_t i) { return data[i]; }
    typename S::Vector& at(int64_t i) { return S::at(data + i); }
  };

  Worker(const Problem& problem, int64_t more_of_keys, int64_t more)
      : p(problem), padded(S::whole(p.dim)) {
    const int64_t size = p.tokens * (2 * padded + more_of_keys) + QUERIES * (padded + p.dim) + more;
    memory = c10::GetCPUAllocator()->allocate(size * sizeof(T));
    next = static_cast<T*>(memory.get());
    keys = take(p.tokens * padded);
    values = take(p.tokens * padded);
    queries = take(QUERIES * padded);
    queries_across = take(QUERIES * p.dim);
  }

  T* take(int64_t count) { return std::exchange(next, next + count); }

  void load_head(int64_t number) {
    head = number;
    mask = p.foreground.const_data_ptr<bool>() + head / p.heads * p.tokens;
    up = p.alpha.const_data_ptr<T>()[head % p.heads];
    down = p.beta.const_data_ptr<T>()[head % p.heads];
    order.clear();
    for (const bool wanted : {true, false}) {
      for (int64_t n = 0; n < p.tokens; ++n)
        if (mask[n] == wanted) order.push_back(n);
      if (wanted) split = order.size();
    }
    const auto token = [&](int64_t i) { return order[i]; };
    load({p.key, head}, p.tokens, token, 1, keys);
    load({p.value, head}, p.tokens, token, 1, values);
  }

  void load_queries(int64_t first, int64_t number) {
    start = first;
    count = number;
    lanes = S::whole(count);
    load_rows({p.query, head}, T(p.scale), queries, queries_across);
  }

  // The queries' rows of a tensor, and the same with a lane for every query; lanes without a query are zero.
  void load_rows(const Head<const scalar_t>& source, T factor, T* rows, T* across) {
    load(source, count, [&](int64_t i) { return start + i; }, factor, rows);
    std::fill_n(rows + count * padded, (lanes - count) * padded, T(0));
    for (int64_t d = 0; d < p.dim; ++d)
      for (int64_t i = 0; i < lanes; ++i) across[d * QUERIES + i] = rows[i * padded + d];
  }

  template <typename Token>
  void load(const Head<const scalar_t>& source, int64_t number, const Token& token, T factor, T* rows) {
    for (int64_t i = 0; i < number; ++i, rows += padded) {
      const scalar_t* row = source[token(i)];
      for (int64_t d = 0; d < p.dim; ++d) rows[d] = static_cast<T>(row[d]) * factor;
      std::fill(rows + p.dim, rows + padded, T(0));
    }
  }

  // tile (keys x queries) of the products with `number` rows.
  void multiply_across(int64_t number, const T* rows, const T* across, T* tile) {
    multiply<T>(number, lanes, p.dim, {rows, padded, 1}, across, QUERIES, tile, QUERIES, false);
  }

  template <typename Function>
  void for_each_tile(const Function& call) {
    for (const Kind kind : {FOREGROUND, BACKGROUND}) {
      const int64_t last = kind == FOREGROUND ? split : p.tokens;
      for (int64_t first = kind == FOREGROUND ? 0 : split; first < last; first += KEYS)
        call(kind, first, std::min(KEYS, last - first));
    }
  }

  T slope(int64_t i, int kind) { return 1 - (mask[start + i] && kind == FOREGROUND ? up : down); }
  T constant(int64_t i, int kind, T highest, T lowest) {
    return mask[start + i] && kind == BACKGROUND ? down * lowest - up * highest : 0;
  }

  const Problem& p;
  const int64_t padded;
  int64_t head, split, start, count, lanes;
  const bool* mask;
  T up, down;
  T *keys, *values, *queries, *queries_across;
  std::vector<int64_t> order;

 private:
  at::DataPtr memory;
  T* next;
};
