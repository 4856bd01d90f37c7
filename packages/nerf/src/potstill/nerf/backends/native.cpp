// Native kernels of the `cpu` backend: hash grid, row-lazy Adam, occupancy marching.
//
// A plain C interface without torch headers: it compiles in two seconds and depends on no version
// of torch. Threads are std::thread and not OpenMP: torch brings its own OpenMP runtime, and two of
// them spin against each other. The definitions are those of potstill.nerf.encodings.hashgrid.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int64_t TILE = 32;     // points whose corners are looked up while the next ones arrive
constexpr int64_t BLOCK = 64;    // bytes of gradient that share one `touched` flag: a cache line

struct Level {
  float scale;
  uint32_t resolution, rows, dense;
  int64_t offset;
};

template <class Work>
void parallel(int64_t count, int64_t threads, Work work) {  // work(first, last), one range a thread
  threads = std::max<int64_t>(1, std::min(threads, count));
  std::vector<std::thread> others;
  for (int64_t t = 1; t < threads; ++t)
    others.emplace_back(work, t * count / threads, (t + 1) * count / threads);
  work(0, count / threads);
  for (auto& other : others) other.join();
}

// Rows and weights of the 8 corners around up to TILE points, corner-major: lanes are points.
struct Corners {
  uint32_t row[8][TILE];
  float weight[8][TILE];
  float fraction[3][TILE];
};

void locate(const float* x, int64_t n, const Level& level, Corners& out) {
  uint32_t cell[3][TILE];
  for (int axis = 0; axis < 3; ++axis)
    for (int64_t i = 0; i < n; ++i) {
      const float p = std::fma(x[3 * i + axis], level.scale, 0.5f);  // one rounding, as tcnn
      const float low = std::floor(p);
      cell[axis][i] = static_cast<uint32_t>(static_cast<int32_t>(low));
      out.fraction[axis][i] = p - low;
    }
  const bool dense = level.dense;
  const uint32_t stride_y = dense ? level.resolution : 2654435761u;
  const uint32_t stride_z = dense ? level.resolution * level.resolution : 805459861u;
  const uint32_t mask = level.rows - 1, rows = level.rows;
  for (int corner = 0; corner < 8; ++corner) {
    const uint32_t dx = corner & 1, dy = corner >> 1 & 1, dz = corner >> 2;
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t gx = cell[0][i] + dx, gy = (cell[1][i] + dy) * stride_y,
                     gz = (cell[2][i] + dz) * stride_z;
      out.row[corner][i] = dense ? gx + gy + gz : (gx ^ gy ^ gz) & mask;
      const float wx = dx ? out.fraction[0][i] : 1 - out.fraction[0][i];
      const float wy = dy ? out.fraction[1][i] : 1 - out.fraction[1][i];
      const float wz = dz ? out.fraction[2][i] : 1 - out.fraction[2][i];
      out.weight[corner][i] = wx * wy * wz;
    }
    if (dense)
      for (int64_t i = 0; i < n; ++i)
        if (out.row[corner][i] >= rows) out.row[corner][i] %= rows;
  }
}

// Calls body(first, n, corners) tile after tile; the rows of the next tile are on their way then.
template <int F, class Body>
void tiles(const float* x, int64_t first, int64_t last, const Level& level, const float* rows,
           Body body) {
  Corners buffers[2];
  if (first >= last) return;
  locate(x + 3 * first, std::min(TILE, last - first), level, buffers[0]);
  for (int64_t at = first, turn = 0; at < last; at += TILE, turn ^= 1) {
    const int64_t n = std::min(TILE, last - at), next = std::min(TILE, last - at - n);
    if (next > 0) {
      Corners& ahead = buffers[turn ^ 1];
      locate(x + 3 * (at + n), next, level, ahead);
      for (int corner = 0; corner < 8; corner += 2)  // neighbours in x mostly share a line
        for (int64_t i = 0; i < next; ++i)
          __builtin_prefetch(rows + F * static_cast<int64_t>(ahead.row[corner][i]));
    }
    body(at, n, buffers[turn]);
  }
}

template <int F>
void forward(const float* x, const float* table, const Level* levels, int64_t points, int64_t count,
             float* y, int64_t threads) {
  const int64_t width = count * F;
  parallel(points, threads, [=](int64_t from, int64_t to) {
    for (int64_t l = 0; l < count; ++l) {  // one level at a time: its rows stay in the caches
      const float* rows = table + levels[l].offset * F;
      tiles<F>(x, from, to, levels[l], rows,
               [=](int64_t at, int64_t n, const Corners& corners) {
                 for (int64_t i = 0; i < n; ++i) {
                   float sum[F] = {};
                   for (int corner = 0; corner < 8; ++corner) {
                     const float* row = rows + F * static_cast<int64_t>(corners.row[corner][i]);
                     for (int f = 0; f < F; ++f) sum[f] += corners.weight[corner][i] * row[f];
                   }
                   for (int f = 0; f < F; ++f) y[(at + i) * width + l * F + f] = sum[f];
                 }
               });
    }
  });
}

// Levels are disjoint in the table, so threads take levels and need no atomics: deterministic.
template <int F>
void backward_table(const float* x, const float* dy, const Level* levels, int64_t points,
                    int64_t count, float* gradient, uint8_t* touched, int64_t threads) {
  const int64_t width = count * F;
  parallel(count, threads, [=](int64_t from, int64_t to) {
    for (int64_t l = from; l < to; ++l) {
      float* rows = gradient + levels[l].offset * F;
      const int64_t base = levels[l].offset * F * sizeof(float);
      tiles<F>(x, 0, points, levels[l], rows,
               [=](int64_t at, int64_t n, const Corners& corners) {
                 for (int64_t i = 0; i < n; ++i) {
                   const float* d = dy + (at + i) * width + l * F;
                   for (int corner = 0; corner < 8; ++corner) {
                     const int64_t row = F * static_cast<int64_t>(corners.row[corner][i]);
                     for (int f = 0; f < F; ++f)
                       rows[row + f] += corners.weight[corner][i] * d[f];
                     touched[(base + row * sizeof(float)) / BLOCK] = 1;
                   }
                 }
               });
    }
  });
}

template <int F>
void backward_input(const float* x, const float* table, const float* dy, const Level* levels,
                    int64_t points, int64_t count, float* dx, int64_t threads) {
  const int64_t width = count * F;
  parallel(points, threads, [=](int64_t from, int64_t to) {
    for (int64_t l = 0; l < count; ++l) {  // one level at a time: its rows stay in the caches
      const float* rows = table + levels[l].offset * F;
      const float scale = levels[l].scale;
      tiles<F>(x, from, to, levels[l], rows,
               [=](int64_t at, int64_t n, const Corners& corners) {
                 for (int64_t i = 0; i < n; ++i) {
                   const float* d = dy + (at + i) * width + l * F;
                   float value[8];
                   for (int corner = 0; corner < 8; ++corner) {
                     const float* row = rows + F * static_cast<int64_t>(corners.row[corner][i]);
                     value[corner] = 0;
                     for (int f = 0; f < F; ++f) value[corner] += d[f] * row[f];
                   }
                   for (int axis = 0; axis < 3; ++axis) {
                     const int b = (axis + 1) % 3, c = (axis + 2) % 3;
                     const float fb = corners.fraction[b][i], fc = corners.fraction[c][i];
                     float slope = 0;
                     for (int k = 0; k < 4; ++k) {
                       const int low = (k & 1) << b | (k >> 1) << c;
                       const float w = ((k & 1) ? fb : 1 - fb) * ((k >> 1) ? fc : 1 - fc);
                       slope += w * (value[low | 1 << axis] - value[low]);
                     }
                     dx[3 * (at + i) + axis] += scale * slope;
                   }
                 }
               });
    }
  });
}

// Samples of one ray: calls take(k) for each interval [edges[k], edges[k+1]] whose sample point
// lies in an occupied cell; the same arithmetic as potstill.nerf.render.march, in float32.
struct March {
  const float *origin, *direction, *base, *far, *jitter, *edges, *low, *inverse;
  const uint8_t* occupied;
  int64_t steps, resolution, contracted;
};

bool occupied_at(const March& m, const float* o, const float* d, float t) {
  float u[3], largest = 0;
  for (int axis = 0; axis < 3; ++axis) {
    u[axis] = ((o[axis] + t * d[axis]) - m.low[axis]) * m.inverse[axis];
    if (m.contracted) u[axis] = 2 * u[axis] - 1;
  }
  if (m.contracted) {
    largest = std::sqrt(u[0] * u[0] + u[1] * u[1] + u[2] * u[2]);
    const float factor = largest <= 1 ? 1.0f : (2 - 1 / largest) / largest;
    for (float& value : u) value = value * factor * 0.25f + 0.5f;
  }
  int64_t index = 0;
  for (float value : u) {
    if (!(value >= 0 && value <= 1)) return false;
    const int64_t cell = static_cast<int64_t>(value * static_cast<float>(m.resolution));
    index = index * m.resolution + std::min(cell, m.resolution - 1);
  }
  return m.occupied[index];
}

template <class Take>
void along(const March& m, int64_t ray, Take take) {
  for (int64_t k = 0; k < m.steps; ++k) {
    const float start = m.base[ray] + m.edges[k];
    if (!(start < m.far[ray])) break;
    const float t = start + m.jitter[ray] * (m.edges[k + 1] - m.edges[k]);
    if (occupied_at(m, m.origin + 3 * ray, m.direction + 3 * ray, t))
      take(t, m.edges[k + 1] - m.edges[k]);
  }
}

}  // namespace

extern "C" {

int64_t potstill_touched_bytes() { return BLOCK; }

#define POTSTILL_BY_WIDTH(call)         \
  switch (features) {                   \
    case 1: call(1); break;             \
    case 2: call(2); break;             \
    case 4: call(4); break;             \
    case 8: call(8); break;             \
    default: return 1;                  \
  }                                     \
  return 0

int potstill_encode(const float* x, const float* table, const Level* levels, int64_t points,
                    int64_t count, int64_t features, float* y, int64_t threads) {
#define CALL(F) forward<F>(x, table, levels, points, count, y, threads)
  POTSTILL_BY_WIDTH(CALL);
#undef CALL
}

int potstill_encode_backward_table(const float* x, const float* dy, const Level* levels,
                                   int64_t points, int64_t count, int64_t features,
                                   float* gradient, uint8_t* touched, int64_t threads) {
#define CALL(F) backward_table<F>(x, dy, levels, points, count, gradient, touched, threads)
  POTSTILL_BY_WIDTH(CALL);
#undef CALL
}

int potstill_encode_backward_input(const float* x, const float* table, const float* dy,
                                   const Level* levels, int64_t points, int64_t count,
                                   int64_t features, float* dx, int64_t threads) {
#define CALL(F) backward_input<F>(x, table, dy, levels, points, count, dx, threads)
  POTSTILL_BY_WIDTH(CALL);
#undef CALL
}

// Adam on the blocks of a table that were touched; clears gradient and flags on the way.
void potstill_row_adam(float* table, float* mean, float* square, float* gradient, uint8_t* touched,
                       int64_t numbers, int64_t features, float rate, float beta1, float beta2,
                       float epsilon, float correction2, int64_t threads) {
  const int64_t per_block = BLOCK / sizeof(float), blocks = (numbers + per_block - 1) / per_block;
  parallel(blocks, threads, [=](int64_t from, int64_t to) {
    for (int64_t block = from; block < to; ++block) {
      if (!touched[block]) continue;
      touched[block] = 0;
      const int64_t first = block * per_block, n = std::min(per_block, numbers - first);
      float live[BLOCK / sizeof(float)];
      for (int64_t row = 0; row < n; row += features) {  // a row is live if any feature is
        float any = 0;
        for (int64_t f = 0; f < features; ++f) any += std::fabs(gradient[first + row + f]);
        for (int64_t f = 0; f < features; ++f) live[row + f] = any;
      }
      for (int64_t i = 0; i < n; ++i) {
        const int64_t k = first + i;
        const float g = gradient[k], m = mean[k] + (1 - beta1) * (g - mean[k]),
                    v = beta2 * square[k] + (1 - beta2) * g * g;
        const float moved = table[k] - rate * m / (std::sqrt(v) * correction2 + epsilon);
        const bool alive = live[i] != 0;
        table[k] = alive ? moved : table[k];
        mean[k] = alive ? m : mean[k];
        square[k] = alive ? v : square[k];
        gradient[k] = 0;
      }
    }
  });
}

void potstill_march_count(const March* m, int64_t rays, int64_t* counts, int64_t threads) {
  parallel(rays, threads, [=](int64_t from, int64_t to) {
    for (int64_t ray = from; ray < to; ++ray) {
      int64_t count = 0;
      along(*m, ray, [&](float, float) { ++count; });
      counts[ray] = count;
    }
  });
}

void potstill_march_write(const March* m, int64_t rays, const int64_t* starts, float* t, float* dt,
                          int64_t* ray_index, int64_t threads) {
  parallel(rays, threads, [=](int64_t from, int64_t to) {
    for (int64_t ray = from; ray < to; ++ray) {
      int64_t at = starts[ray];
      along(*m, ray, [&](float middle, float length) {
        t[at] = middle;
        dt[at] = length;
        ray_index[at++] = ray;
      });
    }
  });
}

}  // extern "C"
