// From a file to the network's input, by the rules of use.json: what flawmap does with 8-bit PNG and JPEG.
#pragma once

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "json.h"
#include "read_jpeg.h"
#include "read_png.h"
#include "resize.h"

inline std::string contents(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string found((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (found.empty()) throw std::runtime_error("is not there, not a file, or empty");
    return found;
}

// Grey or RGB, upright.
inline Picture decode(const std::string& path, double max_mpx) {
    const std::string text = contents(path);
    const Bytes file(text.begin(), text.end());
    if (text.rfind("\x89PNG\r\n\x1a\n", 0) == 0) return PngFile(file, max_mpx).read();
    if (text.rfind("\xff\xd8\xff", 0) == 0) return JpegFile(file, max_mpx).read();
    throw std::runtime_error("not a PNG or JPEG picture; save it as a grey or RGB PNG of 8 bits");
}

class Intake {
   public:
    int height = 0, width = 0;

    explicit Intake(const Json& said) {
        const auto& size = said["size"].as_array("intake.size");
        if (size.size() != 2) throw std::runtime_error("intake.size is not height and width; export again");
        height = static_cast<int>(size[0].as_number("intake.size"));
        width = static_cast<int>(size[1].as_number("intake.size"));
        max_mpx_ = said["max_mpx"].as_number("intake.max_mpx");
        if (!said["resize"].null()) shorter_ = static_cast<int>(said["resize"].as_number("intake.resize"));
        if (height < 1 || width < 1 || (shorter_ && shorter_ < std::max(height, width)))
            throw std::runtime_error("intake.size and intake.resize contradict each other; export again");
        if (!said["white"].null()) throw std::runtime_error("fitted on 16-bit pictures, which are not read here");
        // A rule that came later would change what the network sees: better no verdict than a wrong one.
        for (const auto& member : said.members) {
            const std::string& name = member.first;
            const bool known = name == "size" || name == "white" || name == "max_mpx" || name == "resize";
            if (!known && !member.second.null())
                throw std::runtime_error("the model asks for '" + name + "', which this program cannot do; use flawmap");
        }
    }

    // (3, height, width), values from 0 to 1.
    std::vector<float> operator()(const std::string& path) const {
        const Picture seen = place(decode(path, max_mpx_));
        std::vector<float> planes;
        planes.reserve(size_t{3} * height * width);
        for (int channel = 0; channel < 3; ++channel)
            for (size_t i = 0; i < static_cast<size_t>(height) * width; ++i)
                planes.push_back(seen.pixels[i * seen.channels + channel % seen.channels] / 255.0f);
        return planes;
    }

   private:
    double max_mpx_ = 0;
    int shorter_ = 0;  // 0: squashed to the size; else the shorter side becomes so long and the middle is seen

    Picture place(const Picture& from) const {
        if (!shorter_) return resize(from, width, height);
        const int shortest = std::min(from.width, from.height);
        const auto scaled = [&](int side) { return static_cast<int>(static_cast<double>(shorter_) * side / shortest); };
        const Picture whole = resize(from, scaled(from.width), scaled(from.height));
        // nearbyint rounds halves to even, as Python does.
        const int left = static_cast<int>(std::nearbyint((whole.width - width) / 2.0));
        const int top = static_cast<int>(std::nearbyint((whole.height - height) / 2.0));
        Picture seen{width, height, whole.channels, {}};
        for (int y = 0; y < height; ++y) {
            const auto row = whole.pixels.begin() + (static_cast<size_t>(top + y) * whole.width + left) * whole.channels;
            seen.pixels.insert(seen.pixels.end(), row, row + static_cast<size_t>(width) * whole.channels);
        }
        return seen;
    }
};
