// What the tests ask of the C++ client besides its verdicts.
//   check resize          sizes and pixels on stdin, pixels on stdout
//   check planes USE ...  the network's input of each picture on stdout
#include <cstdio>
#include <fstream>
#include <iostream>

#include "intake.h"

int main(int count, char** words) try {
    if (count == 2 && std::string(words[1]) == "resize") {
        int32_t size[5];
        while (std::cin.read(reinterpret_cast<char*>(size), sizeof size)) {
            Picture from{size[0], size[1], size[2], {}};
            from.pixels.resize(static_cast<size_t>(size[0]) * size[1] * size[2]);
            std::cin.read(reinterpret_cast<char*>(from.pixels.data()), static_cast<std::streamsize>(from.pixels.size()));
            const Picture to = resize(from, size[3], size[4]);
            std::cout.write(reinterpret_cast<const char*>(to.pixels.data()), static_cast<std::streamsize>(to.pixels.size()));
        }
        return 0;
    }
    const Intake intake(JsonReader(contents(words[2])).read()["intake"]);
    for (int i = 3; i < count; ++i) {
        const std::vector<float> planes = intake(words[i]);
        std::cout.write(reinterpret_cast<const char*>(planes.data()), static_cast<std::streamsize>(planes.size() * 4));
    }
    return 0;
} catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 3;
}
