// Vectors, their exponential, and products of small matrices: the arithmetic of attention.cpp.
//
// Written with the vector extension that GCC and Clang share, so that one text serves every processor. Each element of
// a product is summed term by term in one order, whatever the shapes: equal inputs give equal bits.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif

template <typename T>
struct Simd {
  static constexpr int64_t width = VECTOR_BYTES / sizeof(T);
  using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef T Vector __attribute__((vector_size(VECTOR_BYTES), may_alias));
  typedef Integer Integers __attribute__((vector_size(VECTOR_BYTES), may_alias));

  static Vector& at(T* place) { return *reinterpret_cast<Vector*>(place); }
  static const Vector& at(const T* place) { return *reinterpret_cast<const Vector*>(place); }
  static Integers& at(Integer* place) { return *reinterpret_cast<Integers*>(place); }
  static int64_t whole(int64_t count) { return (count + width - 1) / width * width; }

  // 2^x for x up to about 1 and down to minus infinity: the bits of the nearest integer to x, and a Taylor polynomial
  // for the rest. NaN stays NaN.
  static Vector power_of_two(Vector x) {
    constexpr bool single = sizeof(T) == 4;
    // Adding this leaves the nearest integer in the low bits of the sum.
    constexpr T rounder = single ? T(12582912.0) : T(6755399441055744.0);
    const Vector rounded = x + rounder;
    const Vector rest = x - (rounded - rounder);
    constexpr double ln2 = 0.69314718055994531;
    constexpr int degree = single ? 6 : 13;
    double coefficient = 1;
    for (int k = 1; k <= degree; ++k) coefficient *= ln2 / k;
    Vector sum = Vector{} + T(coefficient);
    for (int k = degree; k > 0; --k) {
      coefficient *= k / ln2;
      sum = sum * rest + T(coefficient);
    }
    Integers bits, exponent;
    std::memcpy(&bits, &sum, VECTOR_BYTES);
    std::memcpy(&exponent, &rounded, VECTOR_BYTES);
    bits += exponent << (single ? 23 : 52);
    std::memcpy(&sum, &bits, VECTOR_BYTES);
    return x < T(single ? -125 : -1021) ? Vector{} : sum;
  }
};

// A matrix of which single elements are read: data[row * across + column * along].
template <typename T>
struct Elements {
  const T* data;
  int64_t across, along;
};

template <typename T, int M, int V>
void multiply_block(int64_t terms, Elements<T> a, const T* b, int64_t b_stride, T* c, int64_t c_stride, bool add) {
  using S = Simd<T>;
  typename S::Vector sum[M][V];
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < V; ++v) sum[i][v] = add ? S::at(c + i * c_stride + v * S::width) : typename S::Vector{};
  for (int64_t k = 0; k < terms; ++k) {
    for (int i = 0; i < M; ++i) {
      const T left = a.data[i * a.across + k * a.along];
      for (int v = 0; v < V; ++v) sum[i][v] += S::at(b + k * b_stride + v * S::width) * left;
    }
  }
  for (int i = 0; i < M; ++i)
    for (int v = 0; v < V; ++v) S::at(c + i * c_stride + v * S::width) = sum[i][v];
}

template <typename T, int M, int V>
void multiply_rows(int64_t rows, int64_t terms, Elements<T> a, const T* b, int64_t b_stride, T* c, int64_t c_stride,
                   bool add) {
  for (; rows >= M; rows -= M, a.data += M * a.across, c += M * c_stride)
    multiply_block<T, M, V>(terms, a, b, b_stride, c, c_stride, add);
  if constexpr (M > 1)
    if (rows) multiply_rows<T, M - 1, V>(rows, terms, a, b, b_stride, c, c_stride, add);
}

// c (rows x columns) = a (rows x terms) b (terms x columns), or += with `add`. The columns are whole, aligned vectors.
// As many sums are kept in registers as there are.
template <typename T>
void multiply(int64_t rows, int64_t columns, int64_t terms, Elements<T> a, const T* b, int64_t b_stride, T* c,
              int64_t c_stride, bool add) {
  constexpr int most = VECTOR_BYTES == 64 ? 4 : 2;
  for (int64_t left = columns / Simd<T>::width; left > 0;) {
    const int64_t now = left < most ? left : most;
    if (now == 1) multiply_rows<T, 6, 1>(rows, terms, a, b, b_stride, c, c_stride, add);
    if (now == 2) multiply_rows<T, 6, 2>(rows, terms, a, b, b_stride, c, c_stride, add);
    if constexpr (most == 4) {
      if (now == 3) multiply_rows<T, 6, 3>(rows, terms, a, b, b_stride, c, c_stride, add);
      if (now == 4) multiply_rows<T, 6, 4>(rows, terms, a, b, b_stride, c, c_stride, add);
    }
    left -= now;
    b += now * Simd<T>::width;
    c += now * Simd<T>::width;
  }
}
