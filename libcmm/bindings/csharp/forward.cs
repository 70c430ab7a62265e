// Runs the layers in the files that are named, and prints what each token takes and gives: nodes, logits and outputs, the
// numbers as their bits. The format of the files is in tests/support/layer_files.py.
using System;
using System.IO;
using System.Linq;
using System.Text;
using LibCmm;

class Forward
{
    static readonly StringBuilder Out = new StringBuilder();

    static string Bits(float number)
    {
        return " " + BitConverter.ToUInt32(BitConverter.GetBytes(number), 0).ToString("x8");
    }

    static string Bits(double number)
    {
        return " " + BitConverter.ToUInt64(BitConverter.GetBytes(number), 0).ToString("x16");
    }

    static void Run<T>(string type, Shape shape, T[] wIn, T[] wOut, T[] bias, T[] x, Func<T, string> bits) where T : struct
    {
        var layer = new Layer<T>(shape, wIn, wOut, bias);
        int tokens = (int)(x.Length / shape.DIn), visits = (int)shape.Trees * (shape.Depth + 1), dOut = (int)shape.DOut;
        T[] y = new T[tokens * dOut], logits = new T[tokens * visits];
        int[] nodes = new int[tokens * visits], same = new int[tokens * visits];
        layer.Forward(x, y, nodes, logits);
        layer.Path(x, same, null, 1);
        if (!nodes.SequenceEqual(same))
            throw new InvalidOperationException("the path alone is another");
        for (int token = 0; token < tokens; token++)
        {
            Out.Append(type).Append(" token ").Append(token).Append(" nodes");
            for (int k = token * visits; k < (token + 1) * visits; k++)
                Out.Append(' ').Append(nodes[k]);
            Out.Append(" logits");
            for (int k = token * visits; k < (token + 1) * visits; k++)
                Out.Append(bits(logits[k]));
            Out.Append(" y");
            for (int k = token * dOut; k < (token + 1) * dOut; k++)
                Out.Append(bits(y[k]));
            Out.Append('\n');
        }
    }

    // What is refused, and how that is said.
    static void Refused(string what, Action call)
    {
        try
        {
            call();
        }
        catch (Exception error)
        {
            Out.Append(what).Append(": ").Append(error.Message).Append('\n');
            return;
        }
        throw new InvalidOperationException(what + " was not refused");
    }

    static double[] Widen(float[] from)
    {
        return from == null ? null : from.Select(number => (double)number).ToArray();
    }

    static void File(string name)
    {
        using (var file = new BinaryReader(new FileStream(name, FileMode.Open, FileAccess.Read)))
        {
            long[] sizes = Enumerable.Range(0, 8).Select(k => file.ReadInt64()).ToArray();
            Func<long, float[]> take = count => Enumerable.Range(0, (int)count).Select(k => file.ReadSingle()).ToArray();
            var shape = new Shape {Trees = sizes[0], Depth = (int)sizes[1], DIn = sizes[2], DOut = sizes[3],
                                   Activation = (Activation)sizes[5], Tie = (Tie)sizes[6]};
            float[] wIn = take(shape.Rows * shape.DIn), wOut = take(shape.Rows * shape.DOut);
            float[] bias = sizes[7] == 1 ? take(shape.Rows) : null, x = take(sizes[4] * shape.DIn);
            Run("float32", shape, wIn, wOut, bias, x, Bits);
            Run("float64", shape, Widen(wIn), Widen(wOut), Widen(bias), Widen(x), Bits);

            var layer = new Layer<float>(shape, wIn, wOut, bias);
            var y = new float[sizes[4] * shape.DOut];
            var deep = shape;
            deep.Depth = Abi.CMM_MAX_DEPTH + 1;
            Refused("depth 31", () => new Layer<float>(deep, wIn, wOut));
            Refused("threads -1", () => layer.Forward(x, y, threads: -1));
            Refused("y", () => layer.Forward(x, new float[y.Length + 1]));
            Refused("w_in", () => new Layer<float>(shape, wIn.Skip(1).ToArray(), wOut));
            Refused("type", () => new Layer<int>(shape, new int[1], new int[1]));
        }
    }

    static void Main(string[] names)
    {
        Out.Append("libcmm ").Append(Library.Version).Append('\n');
        foreach (string name in names)
            File(name);
        Console.Write(Out);
    }
}
