// The operators of the CUDA backend, as the schema in ../ms_deform_attn.cpp has them.
#pragma once

#include <tuple>

#include "../ms_deform_attn.h"

namespace ddetr {

Tensor forward_cuda(
    const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
    const Tensor& sampling_locations, const Tensor& attention_weights);

std::tuple<Tensor, Tensor, Tensor> backward_cuda(
    const Tensor& grad_output, const Tensor& value, const Tensor& spatial_shapes,
    const Tensor& level_start_index, const Tensor& sampling_locations,
    const Tensor& attention_weights, bool deterministic);

Tensor fused_forward_cuda(
    const Tensor& value, const Tensor& spatial_shapes, const Tensor& level_start_index,
    const Tensor& reference_points, const Tensor& sampling_offsets,
    const Tensor& attention_logits);

std::tuple<Tensor, Tensor, Tensor, Tensor> fused_backward_cuda(
    const Tensor& grad_output, const Tensor& output, const Tensor& value,
    const Tensor& spatial_shapes, const Tensor& level_start_index, const Tensor& reference_points,
    const Tensor& sampling_offsets, const Tensor& attention_logits, bool reference_grad,
    bool deterministic);

}  // namespace ddetr
