/* strip_int16.h - sums for strip_tile.h without VNNI: pairs of products are added up in 16 bits, for as many steps as
 * fit. A step adds two products of a code and at most 127. Codes up to 15 would fit 8 steps; 4 were faster. Products of
 * signed bytes go to 32 bits at once. */
#ifndef LQ_CPU_STRIP_INT16_H
#define LQ_CPU_STRIP_INT16_H

#define LQ_STRIP_SIGNED 1
#define LQ_SUM_STEPS(max) ((max) <= 31 ? 4 : 2)

LQ_INLINE vint sum_step(vint sum, vint u, vint s) { return vi_add_pairs(sum, u, s); }
LQ_INLINE vint sum_total(vint sum) { return vi_from_pairs(sum); }
LQ_INLINE vint sum_signed(vint sum, vint w, vint s) { return vi_add(sum, vi_dot_signed(w, s)); }

#endif
