// Runs CUDA kernels on a CPU: what the kernels and launch.h take from CUDA and torch, in plain C++.
//
// The threads of a block are fibers that take turns in a fixed order. A fiber runs until it meets
// the others of its warp (shuffles, votes, __syncwarp) or of its block (__syncthreads). What a GPU
// leaves undefined is an error here: lanes of a warp that meet at different operations, and lanes
// that have left. Forgotten synchronisation shows when the turns are taken in another order.
#pragma once

// In the place of the backend's own header.
#define DDETR_CUDA_LAUNCH_H

#include <setjmp.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
// Blocks run one after another, so one copy serves all; it keeps what the block before left there.
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__

using std::fmax;
using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulation {

constexpr int kThreads = 256, kWarp = 32;
constexpr size_t kStack = 64 * 1024;

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStack]};
  ucontext_t start;
  jmp_buf state;
  bool started, done;
  unsigned meetings, barriers;
  uint64_t sent[2];
};

// What the lanes of a warp have done, counted as they do it: nobody is ahead by more than one
// meeting, so sums tell whether all have come.
struct Warp {
  unsigned meetings;  // of all lanes
  int done;           // lanes that have left
  const char* operation[2];
};

inline Fiber fibers[kThreads];
inline Warp warps[kThreads / kWarp];
inline unsigned barriers;  // of all threads
inline int threads_done;
inline jmp_buf scheduler;
inline int current;
inline dim3 block;
inline std::function<void()> body;
inline std::string failure;
inline bool last_thread_first = false;
inline bool levels_on_device = false;

// Lets the next thread run.
inline void yield() {
  if (!_setjmp(fibers[current].state)) _longjmp(scheduler, 1);
}

[[noreturn]] inline void fail(const std::string& what) {
  failure = what;
  _longjmp(scheduler, 1);
  throw std::logic_error("unreachable");
}

// Meets the other lanes of the warp; afterwards sent_by() knows what each of them brought.
inline void meet(const char* operation, uint64_t sends) {
  Fiber& mine = fibers[current];
  Warp& warp = warps[current / kWarp];
  const unsigned turn = mine.meetings % 2;
  const char*& agreed = warp.operation[turn];
  if (warp.meetings == mine.meetings * kWarp) agreed = operation;  // the first to come
  if (agreed != operation) {
    fail(std::string("lanes meet at ") + operation + " and " + agreed);
  }
  mine.sent[turn] = sends;
  ++mine.meetings;
  ++warp.meetings;
  while (warp.meetings < mine.meetings * kWarp) {
    if (warp.done) fail(std::string("a lane has left before ") + operation);
    yield();
  }
}

inline uint64_t sent_by(int lane) {
  return fibers[current / kWarp * kWarp + lane].sent[(fibers[current].meetings + 1) % 2];
}

template <typename T>
uint64_t bits(T x) {
  uint64_t to = 0;
  std::memcpy(&to, &x, sizeof x);
  return to;
}
template <typename T>
T from_bits(uint64_t x) {
  T to;
  std::memcpy(&to, &x, sizeof to);
  return to;
}

inline void enter() {
  body();
  fibers[current].done = true;
  ++warps[current / kWarp].done;
  ++threads_done;
  _longjmp(scheduler, 1);
}

inline void run_block() {
  for (Fiber& fiber : fibers) {
    fiber.started = fiber.done = false;
    fiber.meetings = fiber.barriers = 0;
  }
  for (Warp& warp : warps) warp = {};
  barriers = 0;
  threads_done = 0;
  const auto progress = [] {
    unsigned sum = barriers + threads_done;
    for (const Warp& warp : warps) sum += warp.meetings;
    return sum;
  };
  while (threads_done < kThreads) {
    const unsigned before = progress();
    for (int turn = 0; turn < kThreads; ++turn) {
      current = last_thread_first ? kThreads - 1 - turn : turn;
      Fiber& fiber = fibers[current];
      if (fiber.done) continue;
      if (!_setjmp(scheduler)) {
        if (fiber.started) _longjmp(fiber.state, 1);
        fiber.started = true;
        getcontext(&fiber.start);
        fiber.start.uc_stack.ss_sp = fiber.stack.get();
        fiber.start.uc_stack.ss_size = kStack;
        fiber.start.uc_link = nullptr;
        makecontext(&fiber.start, enter, 0);
        setcontext(&fiber.start);
      }
      if (!failure.empty()) {
        const std::string what = std::move(failure);
        failure.clear();
        throw std::runtime_error("emulated GPU: " + what);
      }
    }
    if (before == progress()) throw std::runtime_error("emulated GPU: threads wait for ever");
  }
}

struct ThreadIndex {
  struct {
    operator unsigned() const { return unsigned(current); }
  } x;
};

}  // namespace emulation

#define threadIdx (::emulation::ThreadIndex{})
#define blockIdx (::emulation::block)

template <typename T>
T __shfl_xor_sync(unsigned, T x, int mask) {
  emulation::meet("__shfl_xor_sync", emulation::bits(x));
  return emulation::from_bits<T>(
      emulation::sent_by((emulation::current % emulation::kWarp) ^ mask));
}

template <typename T>
T __shfl_sync(unsigned, T x, int lane) {
  emulation::meet("__shfl_sync", emulation::bits(x));
  return emulation::from_bits<T>(emulation::sent_by(lane % emulation::kWarp));
}

inline unsigned __ballot_sync(unsigned, bool x) {
  emulation::meet("__ballot_sync", x);
  unsigned votes = 0;
  for (int lane = 0; lane < emulation::kWarp; ++lane) {
    votes |= unsigned(emulation::sent_by(lane)) << lane;
  }
  return votes;
}

inline bool __any_sync(unsigned, bool x) {
  emulation::meet("__any_sync", x);
  bool any = false;
  for (int lane = 0; lane < emulation::kWarp; ++lane) any |= emulation::sent_by(lane) != 0;
  return any;
}

inline void __syncwarp() { emulation::meet("__syncwarp", 0); }

inline void __syncthreads() {
  const unsigned barrier = ++emulation::fibers[emulation::current].barriers;
  ++emulation::barriers;
  while (emulation::barriers < barrier * emulation::kThreads) {
    if (emulation::threads_done) emulation::fail("a thread has left before __syncthreads");
    emulation::yield();
  }
}

inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline float __uint_as_float(unsigned x) { return emulation::from_bits<float>(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }

template <typename T>
void atomicAdd(T* to, T x) {
  *to += x;
}

struct __half {
  c10::Half number;
};
struct __nv_bfloat16 {
  c10::BFloat16 number;
};
inline float __half2float(__half x) { return x.number; }
inline __half __float2half_rn(float x) { return {c10::Half(x)}; }
inline float __bfloat162float(__nv_bfloat16 x) { return x.number; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return {c10::BFloat16(x)}; }

namespace ddetr {

constexpr int kThreads = emulation::kThreads;

struct Stream {};

struct DeviceGuard {
  explicit DeviceGuard(int) {}
};

// The emulated GPU's memory is the host's.
inline bool on_gpu(const torch::stable::Tensor&) { return true; }
inline bool readable_by_host(const torch::stable::Tensor&) {
  return !emulation::levels_on_device;
}
inline Stream current_stream(const torch::stable::Tensor&) { return {}; }

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, Stream, const Arguments&... arguments) {
  emulation::body = [&] { kernel(arguments...); };
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        emulation::block = dim3(x, y, z);
        emulation::run_block();
      }
    }
  }
}

}  // namespace ddetr
