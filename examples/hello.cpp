// Continues a text, in C++. Usage: hello-cpp MODEL [PROMPT [MAX_TOKENS [SEED]]]
#include <dsv2/dsv2.hpp>

#include <cstdlib>
#include <iostream>

int main(int argc, char **argv) {
    if (argc < 2) {
        std::cerr << "usage: " << argv[0] << " MODEL [PROMPT [MAX_TOKENS [SEED]]]\n";
        return 2;
    }
    try {
        const dsv2::model model(argv[1]);
        const dsv2::tokenizer tokenizer = model.tokenizer();
        dsv2::session session(model);

        dsv2_sampling sampling = dsv2::default_sampling();
        sampling.temperature = 0.7f;
        sampling.seed = argc > 4 ? std::strtoull(argv[4], nullptr, 10) : 0;
        session.set_sampling(sampling);

        session.feed(tokenizer.encode(argc > 2 ? argv[2] : "Once upon a time", DSV2_ENCODE_BOS));
        std::string pending; // bytes of a character that is not whole yet
        for (long left = argc > 3 ? std::atol(argv[3]) : 100; left > 0; left--) {
            const int32_t token = session.sample();
            if (token == model.info().eos_token_id)
                break;
            pending += tokenizer.decode({token});
            const size_t complete = dsv2_utf8_complete(pending.data(), pending.size());
            std::cout << pending.substr(0, complete) << std::flush;
            pending.erase(0, complete);
            session.feed({token});
        }
        std::cout << pending << '\n';
    } catch (const std::exception &failure) {
        std::cerr << failure.what() << '\n';
        return 1;
    }
}
