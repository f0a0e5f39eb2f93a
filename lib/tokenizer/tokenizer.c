#include "tokenizer/tokenizer.h"
dsv2_status dsv2_tokenizer_load(const char *path, dsv2_tokenizer **tokenizer){(void)path;*tokenizer=NULL;return DSV2_OK;}
void dsv2_tokenizer_destroy(dsv2_tokenizer *t){(void)t;}
void dsv2_tokenizer_set_special(dsv2_tokenizer *t,int32_t a,int32_t b){(void)t;(void)a;(void)b;}
