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

// Checks value and the level tensors; fills in what they say.
inline Sizes check_value(
    const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index) {
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
  const ScalarType dtype = value.scalar_type();
  check(
      dtype == ScalarType::Half || dtype == ScalarType::BFloat16 || dtype == ScalarType::Float ||
          dtype == ScalarType::Double,
      "value must be a floating-point tensor, got ", dtype);
  check(
      spatial_shapes.scalar_type() == ScalarType::Long, "spatial_shapes must be int64, got ",
      spatial_shapes.scalar_type());
  check(
      level_start_index.scalar_type() == ScalarType::Long,
      "level_start_index must be int64, got ", level_start_index.scalar_type());
  check(
      spatial_shapes.is_cpu() || spatial_shapes.device() == value.device(),
      "spatial_shapes must be on the device of value or on the CPU");
  check(
      level_start_index.device() == spatial_shapes.device(),
      "level_start_index must be on the device of spatial_shapes");
  return n;
}

// Coordinates and weights: float32, float64 beside float64 values, on the device of value.
inline void check_coordinates(const char* name, const Tensor& tensor, const Tensor& value) {
  const ScalarType dtype = value.scalar_type();
  const ScalarType wanted = dtype == ScalarType::Double ? dtype : ScalarType::Float;
  check(
      tensor.scalar_type() == wanted, name, " must be ", wanted, " with a value of ", dtype,
      ", got ", tensor.scalar_type());
  check(tensor.device() == value.device(), name, " must be on the device of value");
}

// Checks (B, Q, M, L, P, 2) `points` and (B, Q, M, L, P) `weights`; adds Q and P to `n`.
inline void check_points(
    Sizes& n, const Tensor& value, const char* points_name, const Tensor& points,
    const char* weights_name, const Tensor& weights) {
  check(
      points.dim() == 6 && points.size(0) == n.batch && points.size(2) == n.heads &&
          points.size(3) == n.levels && points.size(4) > 0 && points.size(5) == 2,
      points_name, " must be (B, Q, M, L, P, 2) with B=", n.batch, ", M=", n.heads,
      ", L=", n.levels, ", P >= 1, got ", shape_of(points));
  n.queries = points.size(1), n.points = points.size(4);
  bool same = weights.dim() == 5;
  for (int64_t i = 0; same && i < 5; ++i) same = weights.size(i) == points.size(i);
  check(
      same, weights_name, " must be (B, Q, M, L, P) like ", points_name, " ", shape_of(points),
      ", got ", shape_of(weights));
  check_coordinates(points_name, points, value);
  check_coordinates(weights_name, weights, value);
}

inline Sizes check_inputs(
    const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
    const Tensor& sampling_locations, const Tensor& attention_weights) {
  Sizes n = check_value(value, spatial_shapes, level_start_index);
  check_points(
      n, value, "sampling_locations", sampling_locations, "attention_weights", attention_weights);
  return n;
}

// The same for the fused operator. Its reference points may have a batch of 1 for all pictures.
inline Sizes check_fused_inputs(
    const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
    const Tensor& reference_points, const Tensor& sampling_offsets,
    const Tensor& attention_logits) {
  Sizes n = check_value(value, spatial_shapes, level_start_index);
  check_points(
      n, value, "sampling_offsets", sampling_offsets, "attention_logits", attention_logits);
  const Tensor& ref = reference_points;
  check(
      ref.dim() == 4 && (ref.size(0) == n.batch || ref.size(0) == 1) &&
          ref.size(1) == n.queries && ref.size(2) == n.levels &&
          (ref.size(3) == 2 || ref.size(3) == 4),
      "reference_points must be (B, Q, L, 2 or 4) with B=1 or ", n.batch, ", Q=", n.queries,
      ", L=", n.levels, ", got ", shape_of(ref));
  check_coordinates("reference_points", ref, value);
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

// What has the shape and dtype of the result.
inline void check_output(const Sizes& n, const char* name, const Tensor& tensor, const Tensor& value) {
  check(
      tensor.dim() == 3 && tensor.size(0) == n.batch && tensor.size(1) == n.queries &&
          tensor.size(2) == n.heads * n.channels,
      name, " must be (B, Q, M * D) with B=", n.batch, ", Q=", n.queries,
      ", M * D=", n.heads * n.channels, ", got ", shape_of(tensor));
  check(
      tensor.scalar_type() == value.scalar_type(), name, " must be ", value.scalar_type(),
      " like value, got ", tensor.scalar_type());
  check(tensor.device() == value.device(), name, " must be on the device of value");
}

inline void check_grad_output(const Sizes& n, const Tensor& grad_output, const Tensor& value) {
  check_output(n, "grad_output", grad_output, value);
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
