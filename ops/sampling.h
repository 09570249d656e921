// Where a sample reads and how much: pixel coordinates, cells, corner weights and derivatives.
//
// One text for all backends: S is a number on the GPU and a vector of numbers on the CPU. Plain
// C++17 that nvcc compiles for the GPU too. Host code that calls this with a number, and wants the
// cells of the other backends bit for bit, must be compiled without fused multiply-add
// (-ffp-contract=off).
#pragma once

#if defined(__CUDACC__)
#define DDETR_BOTH __host__ __device__ __forceinline__
#else
// No code of its own: each file that includes this is compiled for instructions of its own.
#define DDETR_BOTH inline __attribute__((always_inline))
#endif

namespace ddetr {

// What is written otherwise for numbers than for vectors. Products and sums here are each rounded,
// never fused: all backends find the same cell. The CPU specialises this for its vectors.
template <typename S>
struct Arithmetic;

template <>
struct Arithmetic<float> {
  using Whole = int;
  static DDETR_BOTH float product(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fmul_rn(a, b);
#else
    return a * b;
#endif
  }
  static DDETR_BOTH float sum(float a, float b) {
#if defined(__CUDA_ARCH__)
    return __fadd_rn(a, b);
#else
    return a + b;
#endif
  }
  static DDETR_BOTH float floor(float a) {
#if defined(__CUDA_ARCH__)
    return ::floorf(a);
#else
    return __builtin_floorf(a);
#endif
  }
  static DDETR_BOTH int whole(float a) { return static_cast<int>(a); }
  static DDETR_BOTH float real(int a) { return static_cast<float>(a); }
};

template <>
struct Arithmetic<double> {
  using Whole = int;
  static DDETR_BOTH double product(double a, double b) {
#if defined(__CUDA_ARCH__)
    return __dmul_rn(a, b);
#else
    return a * b;
#endif
  }
  static DDETR_BOTH double sum(double a, double b) {
#if defined(__CUDA_ARCH__)
    return __dadd_rn(a, b);
#else
    return a + b;
#endif
  }
  static DDETR_BOTH double floor(double a) {
#if defined(__CUDA_ARCH__)
    return ::floor(a);
#else
    return __builtin_floor(a);
#endif
  }
  static DDETR_BOTH int whole(double a) { return static_cast<int>(a); }
  static DDETR_BOTH double real(int a) { return static_cast<double>(a); }
};

template <typename S>
using Whole = typename Arithmetic<S>::Whole;

template <typename S>
DDETR_BOTH S product(S a, S b) {
  return Arithmetic<S>::product(a, b);
}

template <typename S>
DDETR_BOTH S sum(S a, S b) {
  return Arithmetic<S>::sum(a, b);
}

// `number` as an S. Every number used here has the same value in float32 and in float64.
template <typename S>
DDETR_BOTH S constant(float number) {
  return S{} + number;
}

// The pixel of a location in 0..1 over a map of `size` cells; cell 0 has its centre at pixel 0.
template <typename S>
DDETR_BOTH S pixel_of(S location, S size) {
  return sum(product(location, size), constant<S>(-0.5f));
}

// The pixel of a sample `offset` cells away from a reference point.
template <typename S>
DDETR_BOTH S pixel_near(S reference, S size, S offset) {
  return sum(pixel_of(reference, size), offset);
}

// 1 / points where that is exact, for powers of two, else 0.
template <typename T>
DDETR_BOTH T inverse_of(int points) {
  return (points & (points - 1)) == 0 ? T(1) / T(points) : T(0);
}

// `offset` shared among the points of a level; `inverse` is inverse_of(points).
template <typename S, typename T>
DDETR_BOTH S share_of(S offset, T points, T inverse) {
  return inverse != T(0) ? product(offset, S{} + inverse) : offset / (S{} + points);
}

// The pixel of a sample around a reference box; its offset `share` is in halves of the box's side.
template <typename S>
DDETR_BOTH S pixel_in_box(S centre, S side, S size, S share) {
  return pixel_of(sum(centre, product(product(share, side), constant<S>(0.5f))), size);
}

// What a sample reads along one axis: two neighbouring cells. Where one of them is off the map,
// both are the other one, with half of its weight each. So code without branches reads no cell that
// the sample does not read anyway, and multiplies none by a zero that is not the sample's own: a
// NaN in `value` stays among the samples beside it, and infinity stays infinity.
template <typename S>
struct Axis {
  Whole<S> low, high;
  S low_weight, high_weight;
  S low_slope, high_slope;  // derivatives of the weights by the pixel
};

// Whether a sample at this pixel reads anything on this axis. NaN fails the comparisons, and so does
// every pixel of an axis of -1 cells, which stands for a level that does not exist.
template <typename S>
DDETR_BOTH auto on_map(S pixel, Whole<S> size) {
  return (pixel >= constant<S>(-1.0f)) & (pixel < Arithmetic<S>::real(size));
}

// Only for pixels on the map.
template <typename S>
DDETR_BOTH Axis<S> axis_at(S pixel, Whole<S> size) {
  const S whole = Arithmetic<S>::floor(pixel), fraction = pixel - whole;
  const Whole<S> low = Arithmetic<S>::whole(whole), high = low + 1;
  const auto low_in = low >= 0, high_in = high < size;
  const S one = constant<S>(1.0f);
  const S part = low_in & high_in ? one : constant<S>(0.5f), rest = one - fraction;
  Axis<S> axis;
  axis.low = low_in ? low : Whole<S>{};
  axis.high = high_in ? high : size - 1;
  axis.low_weight = part * (low_in ? rest : fraction);
  axis.high_weight = part * (high_in ? fraction : rest);
  axis.low_slope = low_in ? -part : part;
  axis.high_slope = high_in ? part : -part;
  return axis;
}

// Corners are numbered (y low, x low), (y low, x high), (y high, x low), (y high, x high).
template <typename S>
struct Corners {
  Whole<S> row[4];
  S weight[4];
};

template <typename S>
DDETR_BOTH Corners<S> corners_of(
    const Axis<S>& x, const Axis<S>& y, Whole<S> start, Whole<S> width, S attention) {
  const Whole<S> low = start + y.low * width, high = start + y.high * width;
  const S at_low = attention * y.low_weight, at_high = attention * y.high_weight;
  Corners<S> corners;
  corners.row[0] = low + x.low;
  corners.row[1] = low + x.high;
  corners.row[2] = high + x.low;
  corners.row[3] = high + x.high;
  corners.weight[0] = at_low * x.low_weight;
  corners.weight[1] = at_low * x.high_weight;
  corners.weight[2] = at_high * x.low_weight;
  corners.weight[3] = at_high * x.high_weight;
  return corners;
}

// The sample and its derivatives by its pixel, from the corners' own values.
template <typename S>
struct Slopes {
  S sample, by_x, by_y;
};

template <typename S>
DDETR_BOTH Slopes<S> slopes_of(
    const Axis<S>& x, const Axis<S>& y, S corner0, S corner1, S corner2, S corner3) {
  const S low = x.low_weight * corner0 + x.high_weight * corner1;
  const S high = x.low_weight * corner2 + x.high_weight * corner3;
  Slopes<S> slopes;
  slopes.sample = y.low_weight * low + y.high_weight * high;
  slopes.by_x = y.low_weight * (x.low_slope * corner0 + x.high_slope * corner1) +
      y.high_weight * (x.low_slope * corner2 + x.high_slope * corner3);
  slopes.by_y = y.low_slope * low + y.high_slope * high;
  return slopes;
}

}  // namespace ddetr
