// Fast feedforward layers on the CPU, by libcmm.
using System;
using System.Collections.Generic;
using System.Runtime.InteropServices;

namespace LibCmm
{
    /// <summary>A status of libcmm that is not CMM_OK. No output has been touched.</summary>
    public sealed class CmmException : Exception
    {
        /// <summary>One of Abi.CMM_ERROR_...</summary>
        public int Status { get; }

        public unsafe CmmException(int status)
            : base(Text(Abi.cmm_status_name(status)) + ": " + Text(Abi.cmm_status_message(status)))
        {
            Status = status;
        }

        internal static unsafe string Text(byte* words)
        {
            return Marshal.PtrToStringAnsi((IntPtr)words);
        }

        internal static void Check(int status)
        {
            if (status != Abi.CMM_OK)
                throw new CmmException(status);
        }
    }

    /// <summary>What a layer is, but for its weights.</summary>
    public struct Shape
    {
        public long Trees, DIn, DOut;
        public int Depth;
        public Activation Activation;
        public Tie Tie;

        /// <summary>The number of neurons.</summary>
        public long Rows
        {
            get { return Trees * ((2L << Depth) - 1); }
        }
    }

    /// <summary>
    /// A layer on arrays of float or double, which it keeps. They are row-major and pinned for as long as a call takes, and not
    /// copied; a batch is as large as x says. Many threads may use one layer at once. What is wrong is a CmmException, or an
    /// ArgumentException for an array of another size; then nothing was written.
    /// </summary>
    public sealed unsafe class Layer<T> where T : struct
    {
        private readonly Shape shape;
        private readonly T[] wIn, wOut, bias;

        /// <summary>wIn[trees][nodes][DIn], wOut[trees][nodes][DOut], bias[trees][nodes] or null; heap order.</summary>
        public Layer(Shape shape, T[] wIn, T[] wOut, T[] bias = null)
        {
            if (typeof(T) != typeof(float) && typeof(T) != typeof(double))
                throw new ArgumentException("T is " + typeof(T).Name + "; it should be Single or Double");
            this.shape = shape;
            long bytes;
            cmm_fff raw = Describe();
            // Any address: sizes are checked before the arrays are looked at, and nothing is read.
            raw.w_in = raw.w_out = &bytes;
            CmmException.Check(Abi.cmm_fff_pack_size(&raw, &bytes));
            Check("w_in", wIn, shape.Rows * shape.DIn);
            Check("w_out", wOut, shape.Rows * shape.DOut);
            if (bias != null)
                Check("bias", bias, shape.Rows);
            this.wIn = wIn;
            this.wOut = wOut;
            this.bias = bias;
        }

        /// <summary>y[batch][DOut] = the layer applied to x[batch][DIn]. nodes and logits, [batch][trees][depth+1], each or
        /// null, receive the path. At most so many threads; 0 means every core.</summary>
        public void Forward(T[] x, T[] y, int[] nodes = null, T[] logits = null, int threads = 0)
        {
            Check("y", y, Batch(x) * shape.DOut);
            Call(x, y, nodes, logits, threads);
        }

        /// <summary>The path alone. One of nodes and logits may be null.</summary>
        public void Path(T[] x, int[] nodes, T[] logits = null, int threads = 0)
        {
            Call(x, null, nodes, logits, threads);
        }

        private void Call(T[] x, T[] y, int[] nodes, T[] logits, int threads)
        {
            long batch = Batch(x), visits = batch * shape.Trees * (shape.Depth + 1);
            if (nodes != null)
                Check("nodes", nodes, visits);
            if (logits != null)
                Check("logits", logits, visits);
            cmm_fff raw = Describe();
            cmm_run run = default(cmm_run);
            run.size = (uint)sizeof(cmm_run);
            run.threads = threads;
            using (var pins = new Pins())
            {
                raw.w_in = pins.Add(wIn);
                raw.w_out = pins.Add(wOut);
                raw.bias = pins.Add(bias);
                void* pX = pins.Add(x), pY = pins.Add(y), pLogits = pins.Add(logits);
                int* pNodes = (int*)pins.Add(nodes);
                CmmException.Check(y == null
                    ? Abi.cmm_cmm_forward(&raw, &run, batch, pX, pNodes, pLogits)
                    : Abi.cmm_fff_forward(&raw, &run, batch, pX, pY, pNodes, pLogits));
            }
        }

        // Arrays that stay where they are until it is disposed of.
        private sealed class Pins : IDisposable
        {
            private readonly List<GCHandle> handles = new List<GCHandle>();

            public void* Add(Array array)
            {
                if (array == null)
                    return null;
                handles.Add(GCHandle.Alloc(array, GCHandleType.Pinned));
                return (void*)handles[handles.Count - 1].AddrOfPinnedObject();
            }

            public void Dispose()
            {
                handles.ForEach(handle => handle.Free());
            }
        }

        // The layer for C, without its weights.
        private cmm_fff Describe()
        {
            cmm_fff raw = default(cmm_fff);
            raw.size = (uint)sizeof(cmm_fff);
            raw.dtype = typeof(T) == typeof(float) ? Abi.CMM_F32 : Abi.CMM_F64;
            raw.activation = (int)shape.Activation;
            raw.tie = (int)shape.Tie;
            raw.depth = shape.Depth;
            raw.trees = shape.Trees;
            raw.d_in = shape.DIn;
            raw.d_out = shape.DOut;
            return raw;
        }

        private long Batch(T[] x)
        {
            if (x == null)
                throw new ArgumentNullException("x");
            if (x.Length % shape.DIn != 0)
                throw new ArgumentException("x has " + x.Length + " numbers; it should have a multiple of " + shape.DIn);
            return x.Length / shape.DIn;
        }

        private static void Check(string name, Array array, long should)
        {
            if (array == null)
                throw new ArgumentNullException(name);
            if (array.Length != should)
                throw new ArgumentException(name + " has " + array.Length + " numbers; it should have " + should);
        }
    }

    /// <summary>The library.</summary>
    public static class Library
    {
        /// <summary>The version of the library that is running.</summary>
        public static unsafe string Version
        {
            get { return CmmException.Text(Abi.cmm_version()); }
        }
    }
}
