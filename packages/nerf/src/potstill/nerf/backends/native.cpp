// Kernels of the `native` backend: hash grid, row-lazy Adam, occupancy marching.
//
// A plain C interface without torch headers: it compiles in seconds and depends on no version of
// torch. The definitions are those of potstill.nerf.encodings.hashgrid.

#ifdef __AVX512F__
#include <immintrin.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

// The threads of the OpenMP runtime that torch has loaded; null without it. With threads of our own
// beside those two cores gave 1.5 times one, with torch's 1.7 (`hash-threads`).
extern "C" void GOMP_parallel(void (*)(void*), void*, unsigned, unsigned) __attribute__((weak));

namespace {

constexpr int64_t TILE = 32;         // points whose corners are looked up while the next ones arrive
constexpr int64_t CHUNK = 1024;      // points that several small levels do in turn
constexpr int64_t CACHE = 512 << 10; // bytes of rows that stay near a core, with what goes with them
constexpr int64_t BLOCK = 64;        // bytes of gradient that share a `touched` flag: a cache line

// Sixteen numbers at once; GCC and Clang map them to whatever the processor has.
constexpr int64_t LANES = BLOCK / sizeof(float);
typedef float Floats __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(int32_t))));
typedef uint32_t Uints __attribute__((vector_size(LANES * sizeof(uint32_t))));

struct Level {
  float scale;
  uint32_t resolution, rows, dense;
  int64_t offset;
};

template <class Work>
void parallel(int64_t count, int64_t threads, Work work) {  // work(first, last), part by part
  threads = std::max<int64_t>(1, std::min(threads, count));
  std::atomic<int64_t> next(0);
  auto parts = [&] {
    for (int64_t t; (t = next++) < threads;) work(t * count / threads, (t + 1) * count / threads);
  };
  if (threads == 1) return parts();
  if (GOMP_parallel) {
    auto call = [](void* body) { (*static_cast<decltype(parts)*>(body))(); };
    return GOMP_parallel(call, &parts, static_cast<unsigned>(threads), 0);
  }
  std::vector<std::thread> others;
  for (int64_t t = 1; t < threads; ++t) others.emplace_back(parts);
  parts();
  for (auto& other : others) other.join();
}

struct Points {
  const float* axes;  // all x, then all y, then all z
  int64_t count;
};

// Rows and weights of the 8 corners around TILE points, corner-major: lanes are points.
struct Corners {
  alignas(64) uint32_t row[8][TILE];
  alignas(64) float weight[8][TILE];
  alignas(64) float fraction[3][TILE];
};

template <bool DENSE>
void locate(const float* const (&x)[3], const Level& level, Corners& out) {
  const uint32_t stride[3] = {1, DENSE ? level.resolution : 2654435761u,
                              DENSE ? level.resolution * level.resolution : 805459861u};
  const uint32_t last = level.rows - 1;
  Uints beyond = {};
  for (int64_t at = 0; at < TILE; at += LANES) {
    Uints part[3][2];
    Floats near[3][2];
    for (int a = 0; a < 3; ++a) {
      Floats p;
      for (int64_t i = 0; i < LANES; ++i)
        p[i] = std::fma(x[a][at + i], level.scale, 0.5f);  // one rounding, as tcnn
      Ints cell = __builtin_convertvector(p, Ints);  // towards zero,
      cell += (Ints)(__builtin_convertvector(cell, Floats) > p);  // and down: true is -1
      part[a][0] = (Uints)cell * stride[a];
      part[a][1] = part[a][0] + stride[a];
      near[a][1] = p - __builtin_convertvector(cell, Floats);
      near[a][0] = 1 - near[a][1];
      std::memcpy(out.fraction[a] + at, &near[a][1], sizeof(Floats));
    }
    for (int corner = 0; corner < 8; ++corner) {
      const int x1 = corner & 1, y1 = corner >> 1 & 1, z1 = corner >> 2;
      const Uints gx = part[0][x1], gy = part[1][y1], gz = part[2][z1];
      const Uints row = DENSE ? gx + gy + gz : (gx ^ gy ^ gz) & last;
      const Floats weight = near[0][x1] * near[1][y1] * near[2][z1];
      if (DENSE) beyond |= (Uints)(row > last);
      std::memcpy(out.row[corner] + at, &row, sizeof row);
      std::memcpy(out.weight[corner] + at, &weight, sizeof weight);
    }
  }
  uint32_t any = 0;
  for (int64_t i = 0; i < LANES; ++i) any |= beyond[i];
  if (any)  // at the far faces of the cube, which wrap as in tcnn
    for (auto& rows : out.row)
      for (uint32_t& row : rows) row %= level.rows;
}

// Calls body(first, n, corners) tile after tile; the rows of the next tile are on their way then.
template <int F, class Body>
void tiles(const Points& x, int64_t first, int64_t last, const Level& level, const float* rows,
           Body body) {
  Corners buffers[2];
  const bool far = level.rows * F * static_cast<int64_t>(sizeof(float)) > CACHE;
  const auto look = [&](int64_t at, Corners& out) {
    const int64_t n = std::min(TILE, last - at);
    float padded[3][TILE];
    const float* from[3];
    for (int a = 0; a < 3; ++a) {
      from[a] = x.axes + a * x.count + at;
      if (n == TILE) continue;
      for (int64_t i = 0; i < TILE; ++i) padded[a][i] = from[a][std::min(i, n - 1)];
      from[a] = padded[a];
    }
    level.dense ? locate<true>(from, level, out) : locate<false>(from, level, out);
    if (!far) return;
    for (int corner = 0; corner < 8; corner += 2)  // neighbours in x mostly share a line
      for (int64_t i = 0; i < TILE; ++i)
        __builtin_prefetch(rows + F * static_cast<int64_t>(out.row[corner][i]));
  };
  if (first < last) look(first, buffers[0]);
  for (int64_t at = first, turn = 0; at < last; at += TILE, turn ^= 1) {
    if (at + TILE < last) look(at + TILE, buffers[turn ^ 1]);
    body(at, std::min(TILE, last - at), buffers[turn]);
  }
}

// First levels of groups whose rows fit into the cache together, and the end.
std::vector<int64_t> group(const Level* levels, int64_t count, int64_t row_bytes) {
  std::vector<int64_t> starts{0};
  for (int64_t l = 0, bytes = 0; l < count; ++l) {
    const int64_t more = levels[l].rows * row_bytes;
    bytes += more;
    if (bytes <= CACHE || l == starts.back()) continue;
    starts.push_back(l);
    bytes = more;
  }
  starts.push_back(count);
  return starts;
}

// Calls work(level, first, last) for levels and points. A level alone takes all points, since its
// rows then stay in the caches; small ones take turns, so that outputs of a point stay there too.
template <class Work>
void each(int64_t level, int64_t end, int64_t from, int64_t to, Work work) {
  const int64_t chunk = end - level > 1 ? CHUNK : to - from;
  for (int64_t first = from; first < to; first += chunk)
    for (int64_t l = level; l < end; ++l) work(l, first, std::min(first + chunk, to));
}

// Weighted sums of 8 rows for each of TILE points.
template <int F>
void sums(const float* rows, const Corners& corners, float* out) {
#ifdef __AVX512F__
  if constexpr (F == 2) {  // a row of two floats is gathered as one double
    const __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    for (int64_t i = 0; i < TILE; i += 8) {
      __m512 sum = _mm512_setzero_ps();
      for (int corner = 0; corner < 8; ++corner) {
        const __m256i row =
            _mm256_load_si256(reinterpret_cast<const __m256i*>(corners.row[corner] + i));
        const __m512 value = _mm512_castpd_ps(_mm512_i32gather_pd(row, rows, 8));
        const __m512 weight = _mm512_permutexvar_ps(
            twice, _mm512_castps256_ps512(_mm256_load_ps(corners.weight[corner] + i)));
        sum = _mm512_add_ps(sum, _mm512_mul_ps(weight, value));
      }
      _mm512_store_ps(out + 2 * i, sum);
    }
    return;
  }
#endif
  for (int64_t i = 0; i < TILE; ++i) {
    float sum[F] = {};
    for (int corner = 0; corner < 8; ++corner) {
      const float* row = rows + F * static_cast<int64_t>(corners.row[corner][i]);
      for (int f = 0; f < F; ++f) sum[f] += corners.weight[corner][i] * row[f];
    }
    std::memcpy(out + F * i, sum, sizeof sum);
  }
}

template <int F>
void forward(const Points& x, const float* table, const Level* levels, int64_t count, float* y,
             int64_t threads) {
  const auto starts = group(levels, count, F * sizeof(float));
  parallel(x.count, threads, [&](int64_t from, int64_t to) {
    const auto level = [&](int64_t l, int64_t first, int64_t last) {
      const float* rows = table + levels[l].offset * F;
      tiles<F>(x, first, last, levels[l], rows,
               [=](int64_t at, int64_t n, const Corners& corners) {
                 alignas(64) float sum[F * TILE];
                 sums<F>(rows, corners, sum);
                 for (int64_t i = 0; i < n; ++i)
                   std::memcpy(y + ((at + i) * count + l) * F, sum + F * i, F * sizeof(float));
               });
    };
    for (size_t g = 0; g + 1 < starts.size(); ++g)
      each(starts[g], starts[g + 1], from, to, level);
  });
}

// Adds the gradients of TILE points to their rows.
template <int F>
void scatter(float* rows, const Corners& corners, const float* d, int64_t n) {
  typedef float Row __attribute__((vector_size(F * sizeof(float))));
  for (int corner = 0; corner < 8; ++corner) {
    alignas(64) float part[F * TILE];
    for (int64_t i = 0; i < TILE; ++i)
      for (int f = 0; f < F; ++f) part[F * i + f] = corners.weight[corner][i] * d[F * i + f];
    for (int64_t i = 0; i < n; ++i) {
      float* row = rows + F * static_cast<int64_t>(corners.row[corner][i]);
      Row sum, more;
      std::memcpy(&sum, row, sizeof sum);
      std::memcpy(&more, part + F * i, sizeof more);
      sum += more;
      std::memcpy(row, &sum, sizeof sum);
    }
  }
}

// Levels are disjoint in the table, so threads take levels and need no atomics: deterministic.
template <int F>
void backward_table(const Points& x, const float* dy, const Level* levels, int64_t count,
                    float* gradient, uint8_t* touched, int64_t fresh, int64_t threads) {
  constexpr int64_t bytes = F * sizeof(float);
  const auto starts = group(levels, count, bytes);
  const auto level = [&](int64_t l, int64_t first, int64_t last) {
    float* rows = gradient + levels[l].offset * F;
    const int64_t base = levels[l].offset * bytes, size = levels[l].rows * bytes;
    const bool most = 8 * x.count >= levels[l].rows;  // then nearly all blocks are written to
    if (most && first == 0)
      std::memset(touched + base / BLOCK, 1, (base + size - 1) / BLOCK - base / BLOCK + 1);
    tiles<F>(x, first, last, levels[l], rows,
             [=](int64_t at, int64_t n, const Corners& corners) {
               alignas(64) float d[F * TILE] = {};
               for (int64_t i = 0; i < n; ++i)
                 std::memcpy(d + F * i, dy + ((at + i) * count + l) * F, bytes);
               scatter<F>(rows, corners, d, n);
               if (most) return;
               for (const auto& chosen : corners.row)
                 for (int64_t i = 0; i < n; ++i) touched[(base + chosen[i] * bytes) / BLOCK] = 1;
             });
  };
  std::atomic<int64_t> left(starts.size() - 1);
  parallel(threads, threads, [&](int64_t, int64_t) {  // the finest first, as they take longest
    for (int64_t g; (g = --left) >= 0;) {
      const Level &low = levels[starts[g]], &high = levels[starts[g + 1] - 1];
      if (fresh)  // here, because the rows are about to be cached anyway
        std::memset(gradient + low.offset * F, 0, (high.offset + high.rows - low.offset) * bytes);
      each(starts[g], starts[g + 1], 0, x.count, level);
    }
  });
}

template <int F>
void backward_input(const Points& x, const float* table, const float* dy, const Level* levels,
                    int64_t count, float* dx, int64_t threads) {
  parallel(x.count, threads, [&](int64_t from, int64_t to) {
    for (int64_t l = 0; l < count; ++l) {
      const float* rows = table + levels[l].offset * F;
      const float scale = levels[l].scale;
      tiles<F>(x, from, to, levels[l], rows,
               [=](int64_t at, int64_t n, const Corners& corners) {
                 for (int64_t i = 0; i < n; ++i) {
                   const float* d = dy + ((at + i) * count + l) * F;
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

struct Adam {
  float *table, *mean, *square, *gradient;
  uint8_t* touched;
  int64_t numbers;
  float rate, beta1, beta2, epsilon, correction2;
};

// Adam on some blocks: rows whose gradient is not zero move, and their gradient becomes zero.
template <int F, bool WHOLE>
void row_adam(const Adam& a, int64_t from, int64_t to) {
  for (int64_t block = from; block < to; ++block) {
    if (!a.touched[block]) continue;
    a.touched[block] = 0;
    const int64_t at = block * LANES;
    const size_t bytes = WHOLE ? BLOCK : (a.numbers - at) * sizeof(float);
    Floats t = {}, m = {}, v = {}, g = {}, root;
    std::memcpy(&g, a.gradient + at, bytes);
    Ints live = (Ints)(g != 0);
    for (int64_t i = 0; i < LANES; i += F) {  // a row lives if any of its numbers does
      int32_t any = 0;
      for (int f = 0; f < F; ++f) any |= live[i + f];
      for (int f = 0; f < F; ++f) live[i + f] = any;
    }
    std::memcpy(&t, a.table + at, bytes);
    std::memcpy(&m, a.mean + at, bytes);
    std::memcpy(&v, a.square + at, bytes);
    const Floats mean = m + (1 - a.beta1) * (g - m);
    const Floats square = a.beta2 * v + (1 - a.beta2) * g * g;
    for (int64_t i = 0; i < LANES; ++i) root[i] = std::sqrt(square[i]);
    const Floats moved = t - a.rate * mean / (root * a.correction2 + a.epsilon);
    t = live ? moved : t;
    m = live ? mean : m;
    v = live ? square : v;
    std::memcpy(a.table + at, &t, bytes);
    std::memcpy(a.mean + at, &m, bytes);
    std::memcpy(a.square + at, &v, bytes);
    std::memset(a.gradient + at, 0, bytes);
  }
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

// Asks for huge pages below fresh memory: a page fault for 2 MiB instead of 512, and fewer misses
// of the address cache when rows are looked up at random.
void potstill_huge_pages(char* memory, int64_t bytes) {
#ifdef __linux__
  constexpr uintptr_t page = 2 << 20;
  const uintptr_t first = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page,
                  last = (reinterpret_cast<uintptr_t>(memory) + bytes) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

#define POTSTILL_BY_WIDTH(call)         \
  switch (features) {                   \
    case 1: call(1); break;             \
    case 2: call(2); break;             \
    case 4: call(4); break;             \
    case 8: call(8); break;             \
    default: return 1;                  \
  }                                     \
  return 0

int potstill_encode(const float* axes, int64_t points, const Level* levels, int64_t count,
                    int64_t features, int64_t threads, const float* table, float* y) {
#define CALL(F) forward<F>({axes, points}, table, levels, count, y, threads)
  POTSTILL_BY_WIDTH(CALL);
#undef CALL
}

// A `fresh` gradient holds anything and is zeroed on the way.
int potstill_encode_backward_table(const float* axes, int64_t points, const Level* levels,
                                   int64_t count, int64_t features, int64_t threads,
                                   const float* dy, float* gradient, uint8_t* touched,
                                   int64_t fresh) {
#define CALL(F) \
  backward_table<F>({axes, points}, dy, levels, count, gradient, touched, fresh, threads)
  POTSTILL_BY_WIDTH(CALL);
#undef CALL
}

int potstill_encode_backward_input(const float* axes, int64_t points, const Level* levels,
                                   int64_t count, int64_t features, int64_t threads,
                                   const float* dy, const float* table, float* dx) {
#define CALL(F) backward_input<F>({axes, points}, table, dy, levels, count, dx, threads)
  POTSTILL_BY_WIDTH(CALL);
#undef CALL
}

// Adam on the blocks of a table that were touched; clears gradient and flags on the way.
int potstill_row_adam(float* table, float* mean, float* square, float* gradient, uint8_t* touched,
                      int64_t numbers, int64_t features, float rate, float beta1, float beta2,
                      float epsilon, float correction2, int64_t threads) {
  const Adam adam = {table, mean,  square, gradient, touched,    numbers,
                     rate,  beta1, beta2,  epsilon,  correction2};
  const int64_t whole = numbers / LANES, all = (numbers + LANES - 1) / LANES;
#define CALL(F)                                            \
  parallel(whole, threads, [&](int64_t from, int64_t to) { \
    row_adam<F, true>(adam, from, to);                     \
  });                                                      \
  row_adam<F, false>(adam, whole, all)
  POTSTILL_BY_WIDTH(CALL);
#undef CALL
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
