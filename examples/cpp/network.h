// The graph in ONNX Runtime: planes in, score out, and whether the whole map is finite.
#pragma once

#include <onnxruntime_c_api.h>

#include <cmath>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

class Network {
   public:
    explicit Network(const std::string& graph) {
        if (!api_) throw std::runtime_error("the ONNX Runtime library is older than its header; use a newer one");
        check(api_->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "flawmap", &env_));
        check(api_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_));
        OrtSessionOptions* options = nullptr;
        check(api_->CreateSessionOptions(&options));
        OrtStatus* status = api_->CreateSessionFromArray(env_, graph.data(), graph.size(), options, &session_);
        api_->ReleaseSessionOptions(options);
        check(status);
    }
    Network(const Network&) = delete;
    ~Network() {
        if (session_) api_->ReleaseSession(session_);
        if (memory_) api_->ReleaseMemoryInfo(memory_);
        if (env_) api_->ReleaseEnv(env_);
    }

    // The score of one picture: planes (3, height, width) in [0, 1]. Throws when it or the map is not a number.
    float score(std::vector<float>& planes, int height, int width) const {
        const int64_t shape[] = {1, 3, height, width};
        const char *input = "image", *outputs[] = {"map", "score"};
        OrtValue *image = nullptr, *found[2] = {nullptr, nullptr};
        check(api_->CreateTensorWithDataAsOrtValue(memory_, planes.data(), planes.size() * sizeof(float), shape, 4,
                                                   ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &image));
        OrtStatus* status = api_->Run(session_, nullptr, &input, &image, 1, outputs, 2, found);
        api_->ReleaseValue(image);
        check(status);
        const auto release = [this](OrtValue* value) { api_->ReleaseValue(value); };
        const std::unique_ptr<OrtValue, decltype(release)> map(found[0], release), score(found[1], release);
        const std::vector<float> marks = numbers(map.get()), scores = numbers(score.get());
        if (scores.size() != 1) throw std::runtime_error("the graph gives more than one score for a picture");
        for (const std::vector<float>* values : {&marks, &scores})
            for (const float value : *values)
                if (!std::isfinite(value))
                    throw std::runtime_error("the score or the map is not a number, so no verdict can be given");
        return scores[0];
    }

   private:
    const OrtApi* api_ = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    OrtEnv* env_ = nullptr;
    OrtMemoryInfo* memory_ = nullptr;
    OrtSession* session_ = nullptr;

    void check(OrtStatus* status) const {
        if (!status) return;
        const std::string message = api_->GetErrorMessage(status);
        api_->ReleaseStatus(status);
        throw std::runtime_error("ONNX Runtime: " + message);
    }

    std::vector<float> numbers(OrtValue* value) const {
        OrtTensorTypeAndShapeInfo* info = nullptr;
        check(api_->GetTensorTypeAndShape(value, &info));
        const auto release = [this](OrtTensorTypeAndShapeInfo* it) { api_->ReleaseTensorTypeAndShapeInfo(it); };
        const std::unique_ptr<OrtTensorTypeAndShapeInfo, decltype(release)> held(info, release);
        ONNXTensorElementDataType type{};
        size_t count = 0;
        check(api_->GetTensorElementType(info, &type));
        check(api_->GetTensorShapeElementCount(info, &count));
        if (type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) throw std::runtime_error("the graph does not give float32");
        void* data = nullptr;
        check(api_->GetTensorMutableData(value, &data));
        return {static_cast<float*>(data), static_cast<float*>(data) + count};
    }
};
