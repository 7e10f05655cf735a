/* Peak rates of the machine: multiply-adds on registers, and bytes read from memory.
 *
 * The inner loops are assembly: compilers spill or reorder the same loop in C, or vectorise it too narrowly, and with a peak
 * that is too low every share of it is too high.
 *
 *   peak_rate(kind, threads, seconds)   operations per second of all threads (a multiply-add counts 2); 0 if this CPU lacks the instruction
 *   read_rate(threads, bytes, seconds)  bytes per second read by all threads, each from its own `bytes`
 *
 * Every thread measures its own rate over the same time; the rates are added.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { KIND_F32, KIND_BF16, KIND_INT8 };
#define MAX_THREADS 256
#define TURNS 4096 /* of the unrolled loop between two readings of the clock */

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* One turn is 12 independent instructions: enough to cover a latency of 4 to 6 cycles at two a cycle. Accumulators are
 * zeroed and the operands are zero, so nothing is denormal and nothing overflows. */
#define ONE(op, r, sum) op " %%" r "12, %%" r "13, %%" r sum "\n\t"
#define FOUR(op, r, i, j, k, l) ONE(op, r, i) ONE(op, r, j) ONE(op, r, k) ONE(op, r, l)
#define TWELVE(op, r) FOUR(op, r, "0", "1", "2", "3") FOUR(op, r, "4", "5", "6", "7") FOUR(op, r, "8", "9", "10", "11")

/* vzeroall clears the whole of registers 0 to 15 */
#define LOOP(op, r)                                                                                                                     \
  do {                                                                                                                                  \
    uint64_t turns = TURNS;                                                                                                             \
    __asm__ volatile("vzeroall\n\t1:\n\t" TWELVE(op, r) "dec %0\n\tjnz 1b\n\t"                                                          \
                     : "+r"(turns)                                                                                                      \
                     :                                                                                                                  \
                     : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", \
                       "xmm13");                                                                                                        \
  } while (0)

#if defined(__x86_64__)

static void turns_avx2(void) {
  LOOP("vfmadd231ps", "ymm");
  __asm__ volatile("vzeroupper");
}
static void turns_avx512(void) {
  LOOP("vfmadd231ps", "zmm");
  __asm__ volatile("vzeroupper");
}
static void turns_bf16(void) {
  LOOP("vdpbf16ps", "zmm");
  __asm__ volatile("vzeroupper");
}
static void turns_vnni(void) {
  LOOP("vpdpbusd", "zmm");
  __asm__ volatile("vzeroupper");
}

/* Without VNNI a product of bytes takes three instructions: pairs into int16, those into int32, and the sum. */
#define MADDUBS(t, sum)                   \
  "vpmaddubsw %%ymm12, %%ymm13, %%ymm" t  \
  "\n\t"                                  \
  "vpmaddwd %%ymm" t ", %%ymm14, %%ymm" t \
  "\n\t"                                  \
  "vpaddd %%ymm" t ", %%ymm" sum ", %%ymm" sum "\n\t"

static void turns_maddubs(void) {
  uint64_t turns = TURNS;
  __asm__ volatile("vzeroall\n\t1:\n\t" MADDUBS("6", "0") MADDUBS("7", "1") MADDUBS("8", "2") MADDUBS("9", "3") MADDUBS("10", "4")
                       MADDUBS("11", "5") "dec %0\n\tjnz 1b\n\tvzeroupper\n\t"
                   : "+r"(turns)
                   :
                   : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",
                     "xmm13", "xmm14");
}

static void (*loop_for(int kind, double *ops))(void) {
  int avx512 = __builtin_cpu_supports("avx512f") != 0;
  int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  switch (kind) {
    case KIND_F32:
      if (avx512) {
        *ops = 12 * 32.0;
        return turns_avx512;
      }
      if (avx2) {
        *ops = 12 * 16.0;
        return turns_avx2;
      }
      return NULL;
    case KIND_BF16:
      if (avx512 && __builtin_cpu_supports("avx512bf16")) {
        *ops = 12 * 64.0;
        return turns_bf16;
      }
      return NULL;
    case KIND_INT8:
      if (avx512 && __builtin_cpu_supports("avx512vnni")) {
        *ops = 12 * 128.0;
        return turns_vnni;
      }
      if (avx2) {
        *ops = 6 * 64.0;
        return turns_maddubs;
      }
      return NULL;
  }
  return NULL;
}
#elif defined(__aarch64__)
static void turns_neon(void) {
  uint64_t turns = TURNS;
  __asm__ volatile(
      "1:\n\t"
      "fmla v0.4s, v12.4s, v13.4s\n\t"
      "fmla v1.4s, v12.4s, v13.4s\n\t"
      "fmla v2.4s, v12.4s, v13.4s\n\t"
      "fmla v3.4s, v12.4s, v13.4s\n\t"
      "fmla v4.4s, v12.4s, v13.4s\n\t"
      "fmla v5.4s, v12.4s, v13.4s\n\t"
      "fmla v6.4s, v12.4s, v13.4s\n\t"
      "fmla v7.4s, v12.4s, v13.4s\n\t"
      "fmla v8.4s, v12.4s, v13.4s\n\t"
      "fmla v9.4s, v12.4s, v13.4s\n\t"
      "fmla v10.4s, v12.4s, v13.4s\n\t"
      "fmla v11.4s, v12.4s, v13.4s\n\t"
      "subs %0, %0, #1\n\tb.ne 1b\n\t"
      : "+r"(turns)
      :
      : "cc", "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12", "v13");
}
static void (*loop_for(int kind, double *ops))(void) {
  if (kind != KIND_F32) return NULL;
  *ops = 12 * 8.0;
  return turns_neon;
}
#else
static void (*loop_for(int kind, double *ops))(void) {
  (void)kind;
  (void)ops;
  return NULL;
}
#endif

/* ---- threads ---- */

struct share {
  pthread_barrier_t *start;
  void (*turns)(void);
  double ops;         /* a turn */
  const uint64_t *at; /* what read_rate reads; NULL for peak_rate */
  size_t bytes;
  double seconds, rate;
  uint64_t sink;
};

static uint64_t read_all(const uint64_t *p, size_t words) {
  uint64_t a = 0, b = 0, c = 0, d = 0;
  for (size_t i = 0; i + 32 <= words; i += 32) /* one word of each 64-byte line pulls the whole line in */
  {
    a += p[i];
    b += p[i + 8];
    c += p[i + 16];
    d += p[i + 24];
  }
  return a + b + c + d;
}

static void *work(void *argument) {
  struct share *s = argument;
  if (s->turns) s->turns(); /* powers up the wide vector units */
  pthread_barrier_wait(s->start);
  double begin = now(), spent = 0, done = 0;
  while ((spent = now() - begin) < s->seconds || done == 0) {
    if (s->turns) {
      s->turns();
      done += s->ops * TURNS;
    } else {
      s->sink += read_all(s->at, s->bytes / 8);
      done += (double)s->bytes;
    }
  }
  s->rate = done / (now() - begin);
  return NULL;
}

static double run(struct share *shares, int threads) {
  pthread_t ids[MAX_THREADS];
  pthread_barrier_t start;
  int started = 1;
  pthread_barrier_init(&start, NULL, (unsigned)threads);
  for (int t = 0; t < threads; t++) shares[t].start = &start;
  for (; started < threads; started++)
    if (pthread_create(&ids[started], NULL, work, &shares[started])) abort(); /* the other threads would wait for it forever */
  work(&shares[0]);
  double rate = shares[0].rate;
  for (int t = 1; t < threads; t++) {
    pthread_join(ids[t], NULL);
    rate += shares[t].rate;
  }
  pthread_barrier_destroy(&start);
  return rate;
}

double peak_rate(int kind, int threads, double seconds) {
  struct share shares[MAX_THREADS];
  double ops = 0;
  void (*turns)(void) = loop_for(kind, &ops);
  if (!turns || threads < 1 || threads > MAX_THREADS) return 0;
  memset(shares, 0, sizeof shares);
  for (int t = 0; t < threads; t++) {
    shares[t].turns = turns;
    shares[t].ops = ops;
    shares[t].seconds = seconds;
  }
  return run(shares, threads);
}

double read_rate(int threads, uint64_t bytes, double seconds) {
  struct share shares[MAX_THREADS];
  if (threads < 1 || threads > MAX_THREADS) return 0;
  uint64_t *memory = malloc((size_t)threads * bytes);
  if (!memory) return 0;
  memset(memory, 1, (size_t)threads * bytes); /* allocates the pages; untouched ones would all be the zero page */
  memset(shares, 0, sizeof shares);
  for (int t = 0; t < threads; t++) {
    shares[t].at = memory + t * (bytes / 8);
    shares[t].bytes = bytes;
    shares[t].seconds = seconds;
  }
  double rate = run(shares, threads);
  volatile uint64_t keep = shares[0].sink; /* keeps the compiler from dropping the reads */
  (void)keep;
  free(memory);
  return rate;
}
