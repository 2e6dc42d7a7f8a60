// JPEG in grey or RGB. libjpeg's warnings are errors: a truncated file would be filled up with grey.
#pragma once

#include <cstddef>
#include <cstdio>
// jpeglib.h needs the two above
#include <jpeglib.h>

#include <csetjmp>
#include <stdexcept>
#include <string>

#include "exif.h"

class JpegFile {
   public:
    JpegFile(const Bytes& file, double max_mpx) : file_(file), max_mpx_(max_mpx) {
        jpeg_.err = jpeg_std_error(&errors_);
        jpeg_.client_data = this;
        errors_.error_exit = failed;
        errors_.emit_message = warned;
    }
    ~JpegFile() { jpeg_destroy_decompress(&jpeg_); }
    JpegFile(const JpegFile&) = delete;

    Picture read() {
        if (!header()) throw damaged();
        check();
        const int turned = markers();
        if (!body()) throw damaged();
        return upright(picture_, turned);
    }

   private:
    const Bytes& file_;
    const double max_mpx_;
    jpeg_decompress_struct jpeg_{};
    jpeg_error_mgr errors_{};
    jmp_buf back_;
    std::string error_;
    Picture picture_;

    std::runtime_error damaged() const {
        return std::runtime_error("truncated or damaged (" + error_ + "); take or copy the picture again");
    }
    static void failed(j_common_ptr jpeg) {
        auto* self = static_cast<JpegFile*>(jpeg->client_data);
        char message[JMSG_LENGTH_MAX];
        jpeg->err->format_message(jpeg, message);
        self->error_ = message;
        longjmp(self->back_, 1);
    }
    static void warned(j_common_ptr jpeg, int level) {
        if (level < 0) failed(jpeg);
    }

    bool header() {
        if (setjmp(back_)) return false;
        jpeg_create_decompress(&jpeg_);
        jpeg_mem_src(&jpeg_, file_.data(), file_.size());
        jpeg_save_markers(&jpeg_, JPEG_APP0 + 1, 0xFFFF);
        jpeg_read_header(&jpeg_, TRUE);
        return true;
    }

    void check() const {
        if (static_cast<double>(jpeg_.image_width) * jpeg_.image_height > max_mpx_ * 1e6)
            throw std::runtime_error("more megapixels than the model's max_mpx; crop or reduce it");
        if (jpeg_.num_components != 1 && jpeg_.num_components != 3)
            throw std::runtime_error("not grey or RGB; save it as a grey or RGB PNG of 8 bits");
    }

    int markers() const {
        int turned = 1, exifs = 0;
        bool xmp = false;
        for (auto* marker = jpeg_.marker_list; marker; marker = marker->next) {
            const std::string data(marker->data, marker->data + marker->data_length);
            if (data.rfind(std::string("Exif\0\0", 6), 0) == 0) {
                turned = orientation(Bytes(data.begin() + 6, data.end()));
                ++exifs;
            }
            xmp = xmp || data.find("tiff:Orientation") != std::string::npos;
        }
        if (exifs > 1) throw std::runtime_error("holds EXIF twice; save it without, upright");
        if (xmp && turned == 1) throw std::runtime_error("holds XMP that may turn it; save it without, upright");
        return turned;
    }

    bool body() {
        if (setjmp(back_)) return false;
        jpeg_.out_color_space = jpeg_.num_components == 1 ? JCS_GRAYSCALE : JCS_RGB;
        jpeg_start_decompress(&jpeg_);
        picture_.width = static_cast<int>(jpeg_.output_width);
        picture_.height = static_cast<int>(jpeg_.output_height);
        picture_.channels = jpeg_.output_components;
        const size_t line = static_cast<size_t>(picture_.width) * picture_.channels;
        picture_.pixels.resize(line * picture_.height);
        while (jpeg_.output_scanline < jpeg_.output_height) {
            JSAMPROW row = picture_.pixels.data() + jpeg_.output_scanline * line;
            jpeg_read_scanlines(&jpeg_, &row, 1);
        }
        jpeg_finish_decompress(&jpeg_);
        return true;
    }
};
