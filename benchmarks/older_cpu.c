/* Let a program see an older x86-64 processor: preloaded, it hides instruction sets in what CPUID answers.
 *
 *   cc -shared -fPIC -O1 -o older_cpu.so older_cpu.c
 *   OLDER_CPU=avx2 LD_PRELOAD=./older_cpu.so python ...
 *
 * OLDER_CPU=avx2 hides AVX-512, VNNI and AMX; sse hides AVX, AVX2 and FMA as well. Linux lets CPUID fault
 * (arch_prctl(2), ARCH_CPUID), where the processor can; the handler answers in its place. onnxruntime then runs the
 * kernels of such a processor, among them those that add pairs of products in 16 bits. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { SET_CPUID = 0x1012 };
static int hide_avx;

static void hide(unsigned leaf, unsigned sub, unsigned *a, unsigned *b, unsigned *c, unsigned *d) {
  if (leaf == 7 && sub == 0) {
    *b &= ~(1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31); /* AVX-512 */
    *c &= ~(1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14); /* its VBMI, VNNI, BITALG, VPOPCNTDQ */
    *d &= ~(1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25); /* AMX, FP16 */
    if (hide_avx) *b &= ~(1u << 5);
  } else if (leaf == 7 && sub == 1) {
    *a &= ~(1u << 4 | 1u << 5 | 1u << 21 | 1u << 23); /* AVX-VNNI, BF16, AMX-FP16, AVX-IFMA */
    *d &= ~(1u << 4 | 1u << 5 | 1u << 10 | 1u << 19);
  } else if (leaf == 1 && hide_avx) {
    *c &= ~(1u << 12 | 1u << 28 | 1u << 29); /* FMA, AVX, F16C */
  }
}

static void on_fault(int number, siginfo_t *info, void *context) {
  greg_t *r = ((ucontext_t *)context)->uc_mcontext.gregs;
  const unsigned char *at = (const unsigned char *)r[REG_RIP];
  if (at[0] != 0x0f || at[1] != 0xa2) { /* a fault of another kind */
    signal(number, SIG_DFL);
    return;
  }
  unsigned leaf = (unsigned)r[REG_RAX], sub = (unsigned)r[REG_RCX], a, b, c, d;
  syscall(SYS_arch_prctl, SET_CPUID, 1);
  __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(sub));
  syscall(SYS_arch_prctl, SET_CPUID, 0);
  hide(leaf, sub, &a, &b, &c, &d);
  r[REG_RAX] = a, r[REG_RBX] = b, r[REG_RCX] = c, r[REG_RDX] = d;
  r[REG_RIP] += 2;
  (void)info;
}

__attribute__((constructor)) static void start(void) {
  const char *kind = getenv("OLDER_CPU");
  if (!kind) return;
  hide_avx = !strcmp(kind, "sse");
  struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
  sigaction(SIGSEGV, &action, 0);
  if (syscall(SYS_arch_prctl, SET_CPUID, 0)) {
    static const char text[] = "older_cpu: this processor or kernel cannot hide instruction sets\n";
    if (write(2, text, sizeof text - 1)) _exit(77);
  }
}
