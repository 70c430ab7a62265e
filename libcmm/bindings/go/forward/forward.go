// Runs the layers in the files that are named, and prints what each token takes and gives: nodes, logits and outputs, the
// numbers as their bits. The format of the files is in tests/support/layer_files.py.
package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"os"
	"slices"

	cmm "github.com/libcmm/libcmm/libcmm/bindings/go"
)

var out = bufio.NewWriter(os.Stdout)

type layer[T cmm.Real] struct {
	shape              cmm.Shape
	wIn, wOut, bias, x []T
}

func (l *layer[T]) open() (*cmm.FFF[T], error) { return cmm.New(l.shape, l.wIn, l.wOut, l.bias) }

func read(name string) (*layer[float32], error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	from := bufio.NewReader(file)
	var sizes [8]int64
	err = binary.Read(from, binary.LittleEndian, &sizes)
	take := func(from io.Reader, count int64) []float32 {
		numbers := make([]float32, count)
		err = errors.Join(err, binary.Read(from, binary.LittleEndian, numbers))
		return numbers
	}
	l := &layer[float32]{shape: cmm.Shape{Trees: int(sizes[0]), Depth: int(sizes[1]), In: int(sizes[2]),
		Out: int(sizes[3]), Activation: cmm.Activation(sizes[5]), Tie: cmm.Tie(sizes[6])}}
	rows := sizes[0] * (2<<sizes[1] - 1)
	l.wIn, l.wOut = take(from, rows*sizes[2]), take(from, rows*sizes[3])
	if sizes[7] == 1 {
		l.bias = take(from, rows)
	}
	l.x = take(from, sizes[4]*sizes[2])
	return l, err
}

func widen(from []float32) []float64 {
	if from == nil {
		return nil
	}
	wide := make([]float64, len(from))
	for k, number := range from {
		wide[k] = float64(number)
	}
	return wide
}

func printBits[T cmm.Real](what string, numbers []T) {
	fmt.Fprint(out, " ", what)
	for _, number := range numbers {
		switch n := any(number).(type) {
		case float32:
			fmt.Fprintf(out, " %08x", math.Float32bits(n))
		case float64:
			fmt.Fprintf(out, " %016x", math.Float64bits(n))
		}
	}
}

func run[T cmm.Real](name string, l *layer[T]) error {
	fff, err := l.open()
	if err != nil {
		return err
	}
	tokens, visits := len(l.x)/l.shape.In, l.shape.Trees*(l.shape.Depth+1)
	y, same := make([]T, tokens*l.shape.Out), make([]T, tokens*l.shape.Out)
	path := cmm.Path[T]{Nodes: make([]int32, tokens*visits), Logits: make([]T, tokens*visits)}
	again := cmm.Path[T]{Nodes: make([]int32, tokens*visits), Logits: make([]T, tokens*visits)}
	err = errors.Join(
		fff.Forward(l.x, y, &path, cmm.Run{}),
		fff.Forward(l.x, same, nil, cmm.Run{Threads: 1, Level: "native", Algorithm: "per_token"}),
		fff.PathOf(l.x, &again, cmm.Run{}))
	if err != nil {
		return err
	}
	if !slices.Equal(path.Nodes, again.Nodes) || !slices.Equal(path.Logits, again.Logits) {
		return errors.New("the path alone is another")
	}
	for token := 0; token < tokens; token++ {
		fmt.Fprintf(out, "%s token %d nodes", name, token)
		for _, node := range path.Nodes[token*visits : (token+1)*visits] {
			fmt.Fprintf(out, " %d", node)
		}
		printBits("logits", path.Logits[token*visits:(token+1)*visits])
		printBits("y", y[token*l.shape.Out:(token+1)*l.shape.Out])
		fmt.Fprintln(out)
	}
	return nil
}

func runFile(name string) error {
	l, err := read(name)
	if err != nil {
		return err
	}
	wide := &layer[float64]{l.shape, widen(l.wIn), widen(l.wOut), widen(l.bias), widen(l.x)}
	if err := errors.Join(run("float32", l), run("float64", wide)); err != nil {
		return err
	}

	// What is refused, and how that is said.
	fff, err := l.open()
	if err != nil {
		return err
	}
	outputs := len(l.x) / l.shape.In * l.shape.Out
	deep := *l
	deep.shape.Depth = cmm.MaxDepth + 1
	_, depth := deep.open()
	threads := fff.Forward(l.x, make([]float32, outputs), nil, cmm.Run{Threads: -1})
	more := fff.Forward(l.x, make([]float32, outputs+1), nil, cmm.Run{})
	l.wIn = l.wIn[1:]
	_, fewer := l.open()
	fmt.Fprintf(out, "depth 31: %v\nthreads -1: %v\ny: %v\nw_in: %v\n", depth, threads, more, fewer)
	return nil
}

func main() {
	fmt.Fprintln(out, "libcmm", cmm.Version())
	for _, name := range os.Args[1:] {
		if err := runFile(name); err != nil {
			log.Fatal(err)
		}
	}
	out.Flush()
}
