// Sizes of the operator's arguments and the checks that both backends share.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <sstream>
#include <string>
#include <tuple>

namespace ddetr {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Sizes {
  int64_t batch, tokens, heads, channels, queries, levels, points;
};

// What a caller reads when an argument does not fit.
template <typename... Parts>
inline void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  message << "ms_deform_attn: ";
  ((message << parts), ...);
  throw std::runtime_error(message.str());
}

inline std::string shape_of(const Tensor& tensor) {
  std::ostringstream text;
  text << "(";
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << ")";
  return text.str();
}

// Checks shapes, dtypes and devices; `metadata_on_cpu` says where the level tensors may lie
// besides beside `value`.
inline Sizes check_inputs(
    const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
    const Tensor& sampling_locations, const Tensor& attention_weights) {
  check(value.dim() == 4, "value must be (B, S, M, D), got ", shape_of(value));
  Sizes n{};
  n.batch = value.size(0), n.tokens = value.size(1);
  n.heads = value.size(2), n.channels = value.size(3);
  check(n.heads > 0 && n.channels > 0, "value must have M, D >= 1, got ", shape_of(value));
  check(
      spatial_shapes.dim() == 2 && spatial_shapes.size(0) > 0 && spatial_shapes.size(1) == 2,
      "spatial_shapes must be (L, 2) with L >= 1, got ", shape_of(spatial_shapes));
  n.levels = spatial_shapes.size(0);
  check(
      level_start_index.dim() == 1 && level_start_index.size(0) == n.levels,
      "level_start_index must be (L,) with L=", n.levels, ", got ", shape_of(level_start_index));
  const Tensor& loc = sampling_locations;
  check(
      loc.dim() == 6 && loc.size(0) == n.batch && loc.size(2) == n.heads &&
          loc.size(3) == n.levels && loc.size(4) > 0 && loc.size(5) == 2,
      "sampling_locations must be (B, Q, M, L, P, 2) with B=", n.batch, ", M=", n.heads,
      ", L=", n.levels, ", P >= 1, got ", shape_of(loc));
  n.queries = loc.size(1), n.points = loc.size(4);
  const Tensor& weights = attention_weights;
  bool same = weights.dim() == 5;
  for (int64_t i = 0; same && i < 5; ++i) same = weights.size(i) == loc.size(i);
  check(
      same, "attention_weights must be (B, Q, M, L, P) like sampling_locations ", shape_of(loc),
      ", got ", shape_of(weights));

  const ScalarType dtype = value.scalar_type();
  const bool half = dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
  check(
      half || dtype == ScalarType::Float || dtype == ScalarType::Double,
      "value must be a floating-point tensor, got ", dtype);
  const ScalarType coordinates = half ? ScalarType::Float : dtype;
  check(
      loc.scalar_type() == coordinates, "sampling_locations must be ", coordinates,
      " with a value of ", dtype, ", got ", loc.scalar_type());
  check(
      weights.scalar_type() == coordinates, "attention_weights must be ", coordinates,
      " with a value of ", dtype, ", got ", weights.scalar_type());
  check(
      spatial_shapes.scalar_type() == ScalarType::Long, "spatial_shapes must be int64, got ",
      spatial_shapes.scalar_type());
  check(
      level_start_index.scalar_type() == ScalarType::Long,
      "level_start_index must be int64, got ", level_start_index.scalar_type());

  const auto device = value.device();
  check(loc.device() == device, "sampling_locations must be on the device of value");
  check(weights.device() == device, "attention_weights must be on the device of value");
  check(
      spatial_shapes.is_cpu() || spatial_shapes.device() == device,
      "spatial_shapes must be on the device of value or on the CPU");
  check(
      level_start_index.device() == spatial_shapes.device(),
      "level_start_index must be on the device of spatial_shapes");
  return n;
}

// Checks the level numbers themselves, where the host can read them. Both tensors contiguous.
inline void check_levels(const Sizes& n, const int64_t* sizes, const int64_t* starts) {
  int64_t cells = 0;
  for (int64_t l = 0; l < n.levels; ++l) {
    const int64_t height = sizes[2 * l], width = sizes[2 * l + 1];
    check(
        height > 0 && width > 0 && height <= n.tokens && width <= n.tokens &&
            height * width <= n.tokens - cells,
        "spatial_shapes must hold positive sizes that fit value's S=", n.tokens,
        " tokens, got (", height, ", ", width, ") for level ", l);
    cells += height * width;
  }
  check(
      cells == n.tokens, "spatial_shapes hold ", cells, " cells, but value has S=", n.tokens,
      " tokens");
  int64_t start = 0;
  for (int64_t l = 0; l < n.levels; ++l) {
    check(
        starts[l] == start, "level_start_index must be ", start, " for level ", l,
        " by spatial_shapes, got ", starts[l]);
    start += sizes[2 * l] * sizes[2 * l + 1];
  }
}

inline void check_grad_output(const Sizes& n, const Tensor& grad_output, const Tensor& value) {
  check(
      grad_output.dim() == 3 && grad_output.size(0) == n.batch &&
          grad_output.size(1) == n.queries && grad_output.size(2) == n.heads * n.channels,
      "grad_output must be (B, Q, M * D) with B=", n.batch, ", Q=", n.queries,
      ", M * D=", n.heads * n.channels, ", got ", shape_of(grad_output));
  check(
      grad_output.scalar_type() == value.scalar_type(), "grad_output must be ",
      value.scalar_type(), " like value, got ", grad_output.scalar_type());
  check(grad_output.device() == value.device(), "grad_output must be on the device of value");
}

inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

template <typename T>
inline T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
template <typename T>
inline const T* const_data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

}  // namespace ddetr
