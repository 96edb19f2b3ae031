/* strip_vnni.h - sums for strip_tile.h with VNNI: 32 bits from the first step on, for codes up to 255. */
#ifndef LQ_CPU_STRIP_VNNI_H
#define LQ_CPU_STRIP_VNNI_H

#define LQ_STRIP_SIGNED 0
#define LQ_SUM_STEPS(max) 8

LQ_INLINE vint sum_step(vint sum, vint u, vint s) { return vi_add_dot(sum, u, s); }
LQ_INLINE vint sum_total(vint sum) { return sum; }
LQ_INLINE vint sum_signed(vint sum, vint w, vint s) { return vi_add_dot(sum, w, s); }

#endif
