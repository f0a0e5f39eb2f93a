/* The stages of a pass. Every stage gives a status, and a pass ends with the first that is not DSV2_OK. */
#ifndef DS_LIB_FORWARD_STAGE_H
#define DS_LIB_FORWARD_STAGE_H

#include "base/base.h"

typedef enum ds_stage {
    DS_STAGE_EMBED,    /* tokens to the residual stream */
    DS_STAGE_ROPE,     /* angles of the rows' positions */
    DS_STAGE_NORM,     /* of a layer's attention or feed-forward part */
    DS_STAGE_LINEAR,   /* any linear map of attention, router or head */
    DS_STAGE_CACHE,    /* rows into the cache */
    DS_STAGE_ABSORBED, /* attention over the context, in either form */
    DS_STAGE_EXPANDED,
    DS_STAGE_ROUTER,   /* experts are chosen */
    DS_STAGE_FFN,      /* SwiGLU networks: a dense layer's or the chosen experts' */
    DS_STAGE_COMBINE,  /* experts' outputs are added */
    DS_STAGE_ADD,      /* to the residual stream */
    DS_STAGE_HEAD,     /* logits */
    DS_STAGE_COUNT
} ds_stage;

/* Who watches a pass is told when a stage begins, from the calling thread, and may fail the stage with a status. Tests
 * make every stage fail in turn with this. */
typedef struct ds_stage_watch {
    dsv2_status (*begin)(void *user, ds_stage stage); /* NULL: nobody watches */
    void *user;
} ds_stage_watch;

static inline dsv2_status ds_stage_begin(const ds_stage_watch *watch, ds_stage stage)
{
    return watch->begin == NULL ? DSV2_OK : watch->begin(watch->user, stage);
}

#endif
