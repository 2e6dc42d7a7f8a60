// The part of ONNX Runtime's C interface that this example calls, for machines that have the library without its
// header, such as after `pip install onnxruntime`. Where the official header is there, use that.
//
// The interface is a table of functions to which every release only appends, so that a place in it never changes.
// What is not called here is left out as a gap of so many places.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define ORT_API_VERSION 1
#ifdef _WIN32
#define ORT_CALL __stdcall
#else
#define ORT_CALL
#endif

extern "C" {

struct OrtEnv;
struct OrtStatus;
struct OrtMemoryInfo;
struct OrtSession;
struct OrtSessionOptions;
struct OrtRunOptions;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;

enum OrtLoggingLevel { ORT_LOGGING_LEVEL_ERROR = 3 };
enum ONNXTensorElementDataType { ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1 };
enum OrtAllocatorType { OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };

struct OrtApi {
    void* gap0[2];
    const char*(ORT_CALL* GetErrorMessage)(const OrtStatus*);                                              // 2
    OrtStatus*(ORT_CALL* CreateEnv)(OrtLoggingLevel, const char* name, OrtEnv**);                          // 3
    void* gap4[4];
    OrtStatus*(ORT_CALL* CreateSessionFromArray)(const OrtEnv*, const void* graph, size_t bytes,           // 8
                                                 const OrtSessionOptions*, OrtSession**);
    OrtStatus*(ORT_CALL* Run)(OrtSession*, const OrtRunOptions*, const char* const* input_names,           // 9
                              const OrtValue* const* inputs, size_t input_count,
                              const char* const* output_names, size_t output_count, OrtValue** outputs);
    OrtStatus*(ORT_CALL* CreateSessionOptions)(OrtSessionOptions**);                                       // 10
    void* gap11[38];
    OrtStatus*(ORT_CALL* CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo*, void* data, size_t bytes,   // 49
                                                         const int64_t* shape, size_t dimensions,
                                                         ONNXTensorElementDataType, OrtValue**);
    void* gap50[1];
    OrtStatus*(ORT_CALL* GetTensorMutableData)(OrtValue*, void**);                                         // 51
    void* gap52[8];
    OrtStatus*(ORT_CALL* GetTensorElementType)(const OrtTensorTypeAndShapeInfo*,                           // 60
                                               ONNXTensorElementDataType*);
    void* gap61[3];
    OrtStatus*(ORT_CALL* GetTensorShapeElementCount)(const OrtTensorTypeAndShapeInfo*, size_t*);           // 64
    OrtStatus*(ORT_CALL* GetTensorTypeAndShape)(const OrtValue*, OrtTensorTypeAndShapeInfo**);             // 65
    void* gap66[3];
    OrtStatus*(ORT_CALL* CreateCpuMemoryInfo)(OrtAllocatorType, OrtMemType, OrtMemoryInfo**);              // 69
    void* gap70[22];
    void(ORT_CALL* ReleaseEnv)(OrtEnv*);                                                                   // 92
    void(ORT_CALL* ReleaseStatus)(OrtStatus*);                                                             // 93
    void(ORT_CALL* ReleaseMemoryInfo)(OrtMemoryInfo*);                                                     // 94
    void(ORT_CALL* ReleaseSession)(OrtSession*);                                                           // 95
    void(ORT_CALL* ReleaseValue)(OrtValue*);                                                               // 96
    void* gap97[2];
    void(ORT_CALL* ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo*);                             // 99
    void(ORT_CALL* ReleaseSessionOptions)(OrtSessionOptions*);                                             // 100
};

struct OrtApiBase {
    const OrtApi*(ORT_CALL* GetApi)(uint32_t version);
    const char*(ORT_CALL* GetVersionString)();
};

const OrtApiBase* ORT_CALL OrtGetApiBase();
}

static_assert(offsetof(OrtApi, ReleaseSessionOptions) == 100 * sizeof(void*), "a gap of the table is miscounted");
