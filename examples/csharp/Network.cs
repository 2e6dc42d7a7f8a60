using System;
using System.Linq;
using System.Runtime.InteropServices;
using System.Text;

/// <summary>
/// The graph in ONNX Runtime, through the C interface of its library (onnxruntime.dll, libonnxruntime.so): no package
/// is needed. The interface is a table of functions to which every release only appends, so that a place in it never
/// changes; the numbers below are places. With the package Microsoft.ML.OnnxRuntime this file becomes a few lines.
/// </summary>
public sealed class Network : IDisposable
{
    [DllImport("onnxruntime")] private static extern IntPtr OrtGetApiBase();

    private delegate IntPtr GetApi(uint version);
    private delegate IntPtr GetErrorMessage(IntPtr status);
    private delegate IntPtr CreateEnv(int level, byte[] name, out IntPtr env);
    private delegate IntPtr CreateSession(IntPtr env, byte[] graph, UIntPtr bytes, IntPtr options, out IntPtr session);
    private delegate IntPtr RunSession(
        IntPtr session, IntPtr options, IntPtr[] inputNames, IntPtr[] inputs, UIntPtr inputCount,
        IntPtr[] outputNames, UIntPtr outputCount, [In, Out] IntPtr[] outputs);
    private delegate IntPtr CreateOptions(out IntPtr options);
    private delegate IntPtr CreateTensor(
        IntPtr memory, IntPtr data, UIntPtr bytes, long[] shape, UIntPtr dimensions, int type, out IntPtr value);
    private delegate IntPtr CreateMemory(int allocator, int type, out IntPtr memory);
    private delegate IntPtr Pointer(IntPtr of, out IntPtr found);
    private delegate IntPtr Kind(IntPtr of, out int found);
    private delegate IntPtr Size(IntPtr of, out UIntPtr found);
    private delegate void Release(IntPtr what);

    private const int Float = 1;
    private readonly IntPtr api, env, memory, session;

    public Network(byte[] graph)
    {
        var get = Marshal.GetDelegateForFunctionPointer<GetApi>(Marshal.ReadIntPtr(OrtGetApiBase()));
        api = get(1);
        Check(Function<CreateEnv>(3)(3, Encoding.ASCII.GetBytes("flawmap\0"), out env));
        Check(Function<CreateMemory>(69)(1, 0, out memory));
        Check(Function<CreateOptions>(10)(out IntPtr options));
        IntPtr status = Function<CreateSession>(8)(env, graph, (UIntPtr)graph.Length, options, out session);
        Function<Release>(100)(options);
        Check(status);
    }

    public void Dispose()
    {
        Function<Release>(95)(session);
        Function<Release>(94)(memory);
        Function<Release>(92)(env);
    }

    /// <summary>
    /// The score of one picture: planes (3, height, width) in [0, 1]. Throws when it or the map is not a number.
    /// </summary>
    public float Score(float[] planes, int height, int width)
    {
        var names = new[] { "image", "map", "score" }.Select(Marshal.StringToHGlobalAnsi).ToArray();
        var held = GCHandle.Alloc(planes, GCHandleType.Pinned);
        IntPtr[] found = { IntPtr.Zero, IntPtr.Zero };
        IntPtr image = IntPtr.Zero;
        try
        {
            long[] shape = { 1, 3, height, width };
            Check(Function<CreateTensor>(49)(
                memory, held.AddrOfPinnedObject(), (UIntPtr)(4 * planes.Length), shape, (UIntPtr)4, Float, out image));
            Check(Function<RunSession>(9)(
                session, IntPtr.Zero, new[] { names[0] }, new[] { image }, (UIntPtr)1,
                new[] { names[1], names[2] }, (UIntPtr)2, found));
            float[] map = Numbers(found[0]), score = Numbers(found[1]);
            if (score.Length != 1) throw new InvalidOperationException("the graph gives more than one score for a picture");
            if (map.Concat(score).Any(value => float.IsNaN(value) || float.IsInfinity(value)))
                throw new InvalidOperationException("the score or the map is not a number, so no verdict can be given");
            return score[0];
        }
        finally
        {
            foreach (IntPtr value in found.Concat(new[] { image }).Where(value => value != IntPtr.Zero))
                Function<Release>(96)(value);
            held.Free();
            foreach (IntPtr name in names) Marshal.FreeHGlobal(name);
        }
    }

    private T Function<T>(int place) =>
        Marshal.GetDelegateForFunctionPointer<T>(Marshal.ReadIntPtr(api, place * IntPtr.Size));

    private void Check(IntPtr status)
    {
        if (status == IntPtr.Zero) return;
        string message = Marshal.PtrToStringAnsi(Function<GetErrorMessage>(2)(status));
        Function<Release>(93)(status);
        throw new InvalidOperationException("ONNX Runtime: " + message);
    }

    private float[] Numbers(IntPtr value)
    {
        Check(Function<Pointer>(65)(value, out IntPtr info));
        IntPtr wrong = Function<Kind>(60)(info, out int type);
        if (wrong == IntPtr.Zero) wrong = Function<Size>(64)(info, out UIntPtr count);
        else count = UIntPtr.Zero;
        Function<Release>(99)(info);
        Check(wrong);
        if (type != Float) throw new InvalidOperationException("the graph does not give float32");
        Check(Function<Pointer>(51)(value, out IntPtr data));
        var found = new float[(int)count];
        Marshal.Copy(data, found, 0, found.Length);
        return found;
    }
}
