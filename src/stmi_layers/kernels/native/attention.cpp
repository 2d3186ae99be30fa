// Modulated attention on CPU, forward and backward, without a matrix of tokens x tokens.
//
// kernels/dense.py is the readable form; __init__.py in this folder declares the operators.

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "backward.h"
#include "forward.h"

namespace {

using at::Tensor;

// Fewer queries than this are not worth gradients of keys and values of their own.
constexpr int64_t FEWEST_QUERIES_OF_PART = 256;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Heads beside each other in memory, as the layers around attention want them.
Tensor empty_result(const Problem& problem, int64_t copies) {
  const auto options = problem.query.options();
  return at::empty({copies * problem.batch, problem.tokens, problem.heads, problem.dim}, options).transpose(1, 2);
}

std::tuple<Tensor, Tensor> forward(const Tensor& query, const Tensor& key, const Tensor& value,
                                   const Tensor& foreground, const Tensor& alpha, const Tensor& beta, double scale) {
  const Problem problem(query, key, value, foreground, alpha, beta, scale);
  const int64_t tokens = problem.tokens, blocks = divide_up(tokens, QUERIES);
  const Tensor output = empty_result(problem, 1);
  const Tensor summaries = at::empty({problem.batch, problem.heads, tokens, 5}, alpha.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, query.scalar_type(), "native_attention", [&] {
    using T = at::opmath_type<scalar_t>;
    auto* summary = reinterpret_cast<Summary<T>*>(summaries.data_ptr<T>());
    at::parallel_for(0, problem.all_heads * blocks, 1, [&](int64_t first, int64_t last) {
      Forward<scalar_t> worker(problem);
      for (int64_t unit = first; unit < last; ++unit) {
        const int64_t head = unit / blocks, start = unit % blocks * QUERIES;
        if (unit == first || start == 0) worker.load_head(head);
        worker.attend(start, std::min(QUERIES, tokens - start), {output, head}, summary + head * tokens);
      }
    });
  });
  return {output, summaries};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_output, const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& foreground,
    const Tensor& alpha, const Tensor& beta, const Tensor& output, const Tensor& summaries, double scale) {
  const Problem problem(query, key, value, foreground, alpha, beta, scale);
  const Tensor given = Problem::dense(grad_output), attended = Problem::dense(output), kept = summaries.contiguous();
  const int64_t all_heads = problem.all_heads, tokens = problem.tokens;
  TORCH_CHECK(given.sizes() == query.sizes() && attended.sizes() == query.sizes(),
              "gradient and output must have the shape of query; received ", given.sizes(), ", ", attended.sizes());
  TORCH_CHECK(kept.sizes() == at::IntArrayRef({problem.batch, problem.heads, tokens, 5}),
              "summaries must be batch x heads x tokens x 5; received ", kept.sizes());
  // With fewer heads than threads, parts of a head have their own gradients of keys and values, summed at the end.
  const int64_t wanted = std::max<int64_t>(1, divide_up(at::get_num_threads(), std::max<int64_t>(all_heads, 1)));
  const int64_t parts = std::clamp<int64_t>(divide_up(tokens, FEWEST_QUERIES_OF_PART), 1, wanted);
  const Tensor to_query = empty_result(problem, 1);
  const Tensor to_key = empty_result(problem, parts), to_value = empty_result(problem, parts);
  const Tensor strengths = at::empty({2, parts * problem.batch, problem.heads}, alpha.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, query.scalar_type(), "native_attention_backward", [&] {
    using T = at::opmath_type<scalar_t>;
    const auto* summary = reinterpret_cast<const Summary<T>*>(kept.const_data_ptr<T>());
    auto* to_strengths = strengths.data_ptr<T>();
    at::parallel_for(0, parts * all_heads, 1, [&](int64_t first, int64_t last) {
      Backward<scalar_t> worker(problem);
      for (int64_t unit = first; unit < last; ++unit) {
        const int64_t head = unit % all_heads, part = unit / all_heads, stop = tokens * (part + 1) / parts;
        worker.load_head(head);
        for (int64_t start = tokens * part / parts; start < stop; start += QUERIES)
          worker.differentiate(start, std::min(QUERIES, stop - start), {given, head}, {attended, head},
                               summary + head * tokens, {to_query, head});
        worker.store({to_key, unit}, {to_value, unit}, to_strengths[unit], to_strengths[parts * all_heads + unit]);
      }
    });
  });
  const auto sum = [&](const Tensor& grad) {
    return parts == 1 ? grad : grad.transpose(1, 2).unflatten(0, {parts, problem.batch}).sum(0).transpose(1, 2);
  };
  return {to_query, sum(to_key), sum(to_value), strengths[0].sum(0), strengths[1].sum(0)};
}

}  // namespace

TORCH_LIBRARY_IMPL(stmi_layers, CPU, library) {
  library.impl("native_attention", forward);
  library.impl("native_attention_backward", backward);
}
