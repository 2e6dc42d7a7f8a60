// PNG of 8 bits and less: grey, palette, RGB, with or without alpha. Whatever libpng complains about is an error.
#pragma once

#include <png.h>

#include <csetjmp>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "exif.h"

class PngFile {
   public:
    PngFile(const Bytes& file, double max_mpx) : file_(file), max_mpx_(max_mpx) {}
    ~PngFile() { png_destroy_read_struct(&png_, &info_, nullptr); }
    PngFile(const PngFile&) = delete;

    Picture read() {
        const int turned = chunks();
        png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, failed, warned);
        info_ = png_ ? png_create_info_struct(png_) : nullptr;
        if (!info_) throw std::runtime_error("too large for the memory of this machine");
        png_set_read_fn(png_, this, more);
        png_set_crc_action(png_, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
        if (!header()) throw damaged();
        check();
        if (!body()) throw damaged();
        return upright(over_black(colours()), turned);
    }

   private:
    const Bytes& file_;
    const double max_mpx_;
    size_t at_ = 0;
    png_structp png_ = nullptr;
    png_infop info_ = nullptr;
    std::string error_;
    Picture raw_;  // as in the file: 1 grey or index, 2 grey and alpha, 3 RGB, 4 RGBA
    std::vector<png_bytep> rows_;
    int kind_ = 0, bits_ = 0;

    std::runtime_error damaged() const {
        return std::runtime_error("truncated or damaged (" + error_ + "); take or copy the picture again");
    }
    static void failed(png_structp png, png_const_charp message) {
        static_cast<PngFile*>(png_get_error_ptr(png))->error_ = message;
        longjmp(png_jmpbuf(png), 1);
    }
    static void warned(png_structp png, png_const_charp message) {
        for (const char* colour : {"iCCP", "sRGB", "gAMA", "cHRM", "cICP"})  // colour profiles are not used
            if (std::strncmp(message, colour, 4) == 0) return;
        failed(png, message);
    }
    static void more(png_structp png, png_bytep to, size_t count) {
        auto* self = static_cast<PngFile*>(png_get_io_ptr(png));
        if (count > self->file_.size() - self->at_) png_error(png, "the file ends too early");
        std::memcpy(to, self->file_.data() + self->at_, count);
        self->at_ += count;
    }

    // What libpng does not say. Returns the orientation.
    int chunks() const {
        int turned = 1;
        for (size_t at = 8; at + 12 <= file_.size();) {
            const size_t length = static_cast<size_t>(file_[at]) << 24 | file_[at + 1] << 16 | file_[at + 2] << 8 |
                                  file_[at + 3];
            if (length > file_.size() - at - 12) break;  // libpng says where it ends
            const std::string name(file_.begin() + at + 4, file_.begin() + at + 8);
            const auto data = file_.begin() + at + 8;
            if (name == "acTL") throw std::runtime_error("holds several frames; save each as a picture of its own");
            if (name == "eXIf") turned = orientation(Bytes(data, data + length));
            if (name == "tEXt" || name == "zTXt" || name == "iTXt") {
                const std::string text(data, data + length);
                if (text.rfind("XML:com.adobe.xmp", 0) == 0 || text.rfind("Raw profile type exif", 0) == 0)
                    throw std::runtime_error("holds XMP or EXIF as text, which may turn it; save it without");
            }
            at += 12 + length;
        }
        return turned;
    }

    bool header() {
        if (setjmp(png_jmpbuf(png_))) return false;
        png_read_info(png_, info_);
        raw_.width = static_cast<int>(png_get_image_width(png_, info_));
        raw_.height = static_cast<int>(png_get_image_height(png_, info_));
        bits_ = png_get_bit_depth(png_, info_);
        kind_ = png_get_color_type(png_, info_);
        return true;
    }

    void check() const {
        if (static_cast<double>(raw_.width) * raw_.height > max_mpx_ * 1e6)
            throw std::runtime_error("more megapixels than the model's max_mpx; crop or reduce it");
        if (bits_ == 16) throw std::runtime_error("16 bits a channel are not read here; use flawmap");
        if (kind_ != PNG_COLOR_TYPE_PALETTE && png_get_valid(png_, info_, PNG_INFO_tRNS))
            throw std::runtime_error("a transparent colour is not read here; save it without");
    }

    bool body() {
        if (setjmp(png_jmpbuf(png_))) return false;
        if (kind_ == PNG_COLOR_TYPE_PALETTE) png_set_packing(png_);
        if (kind_ == PNG_COLOR_TYPE_GRAY && bits_ < 8) png_set_expand_gray_1_2_4_to_8(png_);
        png_set_interlace_handling(png_);
        png_read_update_info(png_, info_);
        raw_.channels = png_get_channels(png_, info_);
        const size_t line = static_cast<size_t>(raw_.width) * raw_.channels;
        if (png_get_rowbytes(png_, info_) != line) png_error(png_, "rows of another length");
        raw_.pixels.resize(line * raw_.height);
        for (int y = 0; y < raw_.height; ++y) rows_.push_back(raw_.pixels.data() + y * line);
        png_read_image(png_, rows_.data());
        png_read_end(png_, nullptr);
        return true;
    }

    // A palette looked up, grey with alpha repeated: 1 grey, 3 RGB or 4 RGBA.
    Picture colours() {
        if (kind_ != PNG_COLOR_TYPE_PALETTE && raw_.channels != 2) return std::move(raw_);
        Picture to{raw_.width, raw_.height, 4, {}};
        png_colorp palette = nullptr;
        png_bytep alpha = nullptr;
        int count = 0, alphas = 0;
        png_get_PLTE(png_, info_, &palette, &count);
        png_get_tRNS(png_, info_, &alpha, &alphas, nullptr);
        to.pixels.reserve(raw_.pixels.size() * 4);
        for (size_t i = 0; i < raw_.pixels.size(); i += raw_.channels) {
            const uint8_t value = raw_.pixels[i];
            if (raw_.channels == 2) {
                to.pixels.insert(to.pixels.end(), {value, value, value, raw_.pixels[i + 1]});
                continue;
            }
            if (value >= count) throw std::runtime_error("damaged: a colour that the palette lacks");
            const uint8_t opacity = value < alphas ? alpha[value] : 255;
            to.pixels.insert(to.pixels.end(), {palette[value].red, palette[value].green, palette[value].blue, opacity});
        }
        return to;
    }

    static Picture over_black(Picture from) {
        if (from.channels != 4) return from;
        Picture to{from.width, from.height, 3, {}};
        to.pixels.reserve(from.pixels.size() / 4 * 3);
        bool seen = false;
        for (size_t i = 0; i < from.pixels.size(); i += 4) {
            const int alpha = from.pixels[i + 3];
            seen = seen || alpha;
            for (int k = 0; k < 3; ++k)
                to.pixels.push_back(static_cast<uint8_t>((from.pixels[i + k] * alpha + 127) / 255));
        }
        if (!seen) throw std::runtime_error("transparent everywhere; save it without alpha");
        return to;
    }
};
