// The part of C++ in the test that all languages give the same tokens; see same.c.
#include <dsv2/dsv2.hpp>

#include <cmath>
#include <iostream>

static void generate(dsv2::session &session, int n) {
    for (int i = 0; i < n; i++) {
        const int32_t token = session.sample();
        session.feed({token});
        std::cout << token << '\n';
    }
}

int main(int argc, char **argv) {
    if (argc != 4)
        return 2;
    try {
        const dsv2::model model(argv[1]);
        dsv2::session session(model);
        if (std::string(argv[2]) == "fresh") {
            const dsv2_logit_bias no_end = {model.info().eos_token_id, -INFINITY};
            dsv2_sampling sampling = dsv2::default_sampling();
            sampling.logit_bias = &no_end;
            sampling.n_logit_bias = 1;
            sampling.repetition_penalty = 1.1f;
            sampling.frequency_penalty = 0.1f;
            sampling.temperature = 0.8f;
            sampling.top_k = 40;
            sampling.top_p = 0.95f;
            sampling.min_p = 0.01f;
            sampling.seed = 42;
            session.set_sampling(sampling);
            session.feed(model.tokenizer().encode("Once upon a time", DSV2_ENCODE_BOS));
            generate(session, 48);
            session.save(argv[3]);
        } else {
            session.restore(argv[3]);
        }
        generate(session, 16);
    } catch (const dsv2::error &failure) {
        std::cerr << failure.what() << '\n';
        return 1;
    }
}
