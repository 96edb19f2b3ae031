/* project.c - all products with weight matrices. */
#include "model/pass.h"

static void unpack(lq_matmul *products, const lq_projection *group, uint32_t n_group) {
    for (uint32_t i = 0; i < n_group; i++)
        products[i] = (lq_matmul){&group[i].linear->weight, group[i].linear->bias, group[i].y};
}

/* Applies a matrix's factors after the bias, which was divided by them when it was loaded. */
static void scale(const lq_pass *f, const lq_projection *p, uint32_t n_rows, const lq_expert_choice *choice) {
    const lq_weight *w = &p->linear->weight;
    if (w->factors != NULL) f->ops->scale(f->backend, p->y, n_rows, w->n_rows, w->factors, choice);
}

/* With a tentative part, multiplies at most most_alike rows at once: up to there a row's bits do not depend on their
 * number. */
void lq_project(const lq_pass *f, const lq_projection *group, uint32_t n_group, const float *x, uint32_t n_rows) {
    uint32_t most = f->is_tentative ? f->ops->most_alike : n_rows;
    lq_matmul products[LQ_MATMUL_MAX_GROUP] = {{NULL, NULL, NULL}};
    unpack(products, group, n_group);
    for (uint32_t done = 0, n; done < n_rows; done += n) {
        n = n_rows - done < most ? n_rows - done : most;
        f->ops->matmul(f->backend, products, n_group, x + (size_t)done * group[0].linear->weight.n_cols, n);
        for (uint32_t i = 0; i < n_group; i++) products[i].y += (size_t)n * products[i].weight->n_rows;
    }
    for (uint32_t i = 0; i < n_group; i++) scale(f, &group[i], n_rows, NULL);
}

void lq_project_experts(const lq_pass *f, const lq_projection *group, uint32_t n_group, const float *x,
                        const lq_expert_choice *choice) {
    lq_matmul products[LQ_MATMUL_MAX_GROUP] = {{NULL, NULL, NULL}};
    unpack(products, group, n_group);
    f->ops->expert_matmul(f->backend, products, n_group, x, choice);
    for (uint32_t i = 0; i < n_group; i++) scale(f, &group[i], choice->n_tokens * choice->n_used, choice);
}
