/* What all sources share: the threads of torch's own pool, and how they divide work and wait for each other. */
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

typedef int64_t size;

/* ---- Work in shares: share i of n units, of as many as there are threads. ---- */

typedef void (*work)(void *);
static void (*together)(work, void *, unsigned threads, unsigned flags);
static int (*number)(void);
static int (*members)(void);

/* They are GOMP_parallel, omp_get_thread_num and omp_get_num_threads of the library that torch uses. */
void use_team(void *parallel, void *thread_number, void *team_size) {
    together = (void (*)(work, void *, unsigned, unsigned))parallel;
    number = (int (*)(void))thread_number;
    members = (int (*)(void))team_size;
}
static size share(size units, size at) { return units * at / members(); }
#define MINE(from, to, units) size from = share(units, number()), to = share(units, number() + 1)

/* A wait for all threads. OpenMP's own spins for milliseconds, which are lost where other programs want the processor;
 * this one soon lets them have it. */
struct meeting {
    atomic_int arrived, round;
};
#define SPINS 1000
static void all_here(struct meeting *meeting) {
    int round = atomic_load(&meeting->round);
    if (atomic_fetch_add(&meeting->arrived, 1) + 1 == members()) {
        atomic_store(&meeting->arrived, 0);
        atomic_fetch_add(&meeting->round, 1);
        return;
    }
    for (int spins = 0; atomic_load(&meeting->round) == round; spins++) {
        if (spins > SPINS) sched_yield();
#if defined(__SSE__)
        else _mm_pause();
#endif
    }
}
