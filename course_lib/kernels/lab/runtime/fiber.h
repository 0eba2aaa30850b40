// Fibers: threads that run until they wait. A switch saves what a called function must keep, and the stack.
#pragma once

#if defined(__APPLE__)
#define LAB_SYMBOL(name) "_" name
#else
#define LAB_SYMBOL(name) name
#endif

extern "C" {
// Store this stack's pointer in *from, and go on where the stack `to` stopped.
__attribute__((visibility("hidden"))) void lab_switch(void** from, void* to);
__attribute__((visibility("hidden"))) void lab_enter();  // where a new stack begins: calls lab_thread()
__attribute__((visibility("hidden"))) void lab_thread();
}

#if defined(__x86_64__)
__asm__(
    ".text\n"
    ".globl " LAB_SYMBOL("lab_switch") "\n" LAB_SYMBOL("lab_switch") ":\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".globl " LAB_SYMBOL("lab_enter") "\n" LAB_SYMBOL("lab_enter") ":\n"
    "  xorl %ebp, %ebp\n"
    "  call " LAB_SYMBOL("lab_thread") "\n"
    "  ud2\n");

inline void* lab_new_stack(void* top) {
    void** at = (void**)((unsigned long long)top & ~15ull) - 9;
    for (int i = 0; i < 9; ++i) at[i] = 0;
    at[6] = (void*)&lab_enter;  // above the six saved registers; leaves the stack a multiple of 16
    return at;
}
#elif defined(__aarch64__)
__asm__(
    ".text\n"
    ".p2align 2\n"
    ".globl " LAB_SYMBOL("lab_switch") "\n" LAB_SYMBOL("lab_switch") ":\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp, #0]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n"
    "  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
    "  ldp x19, x20, [sp, #0]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n"
    "  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n"
    "  ret\n"
    ".p2align 2\n"
    ".globl " LAB_SYMBOL("lab_enter") "\n" LAB_SYMBOL("lab_enter") ":\n"
    "  mov x29, #0\n  bl " LAB_SYMBOL("lab_thread") "\n  brk #0\n");

inline void* lab_new_stack(void* top) {
    void** at = (void**)((unsigned long long)top & ~15ull) - 20;
    for (int i = 0; i < 20; ++i) at[i] = 0;
    at[11] = (void*)&lab_enter;  // x30, where lab_switch returns to
    return at;
}
#else
#error "the kernel lab switches threads in assembly, and knows x86-64 and arm64 only"
#endif
