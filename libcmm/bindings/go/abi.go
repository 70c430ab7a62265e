// Made by libcmm/bindings/generate.py of libcmm/abi.txt: what libcmm exports.

package cmm

// Status is what a call reports.
type Status int32

const (
	OK                    Status = 0
	ErrorLayerNull        Status = 10
	ErrorLayerSize        Status = 11
	ErrorDtype            Status = 12
	ErrorActivation       Status = 13
	ErrorTie              Status = 14
	ErrorTrees            Status = 15
	ErrorDepth            Status = 16
	ErrorNeurons          Status = 17
	ErrorDIn              Status = 18
	ErrorDOut             Status = 19
	ErrorLdIn             Status = 20
	ErrorLdOut            Status = 21
	ErrorLayerTooLarge    Status = 22
	ErrorReserved         Status = 23
	ErrorWeightDtype      Status = 24
	ErrorScale            Status = 25
	ErrorExact            Status = 26
	ErrorLdExact          Status = 27
	ErrorRunSize          Status = 30
	ErrorThreads          Status = 31
	ErrorLevel            Status = 32
	ErrorLevelUnusable    Status = 33
	ErrorIsa              Status = 34
	ErrorIsaUnusable      Status = 35
	ErrorMethod           Status = 36
	ErrorBlasMissing      Status = 37
	ErrorBlasSize         Status = 38
	ErrorBlasIncomplete   Status = 39
	ErrorLevelWeightDtype Status = 40
	ErrorPathTwice        Status = 41
	ErrorPathDense        Status = 42
	ErrorBatch            Status = 50
	ErrorBatchTooLarge    Status = 51
	ErrorWInNull          Status = 52
	ErrorWOutNull         Status = 53
	ErrorXNull            Status = 54
	ErrorYNull            Status = 55
	ErrorPathNull         Status = 56
	ErrorWInAlign         Status = 57
	ErrorBiasAlign        Status = 58
	ErrorWOutAlign        Status = 59
	ErrorXAlign           Status = 60
	ErrorYAlign           Status = 61
	ErrorNodesAlign       Status = 62
	ErrorLogitsAlign      Status = 63
	ErrorYOverlap         Status = 64
	ErrorNodesOverlap     Status = 65
	ErrorLogitsOverlap    Status = 66
	ErrorScaleAlign       Status = 67
	ErrorExactAlign       Status = 68
	ErrorPathAlign        Status = 69
	ErrorPath             Status = 70
	ErrorMemory           Status = 80
	ErrorBlasNull         Status = 90
	ErrorBlasFileNull     Status = 91
	ErrorBlasFile         Status = 92
	ErrorBlasSymbols      Status = 93
	ErrorIndex            Status = 100
	ErrorInfoNull         Status = 101
	ErrorInfoSize         Status = 102
	ErrorMemoryNull       Status = 103
	ErrorMemoryAlign      Status = 104
	ErrorMemorySize       Status = 105
	ErrorPackedNull       Status = 106
	ErrorBytesNull        Status = 107
	ErrorMemoryOverlap    Status = 108
	ErrorOptionsSize      Status = 109
	ErrorRowNotFinite     Status = 110
	ErrorSigmas           Status = 111
	ErrorCudaLaunch       Status = 120
	ErrorCudaAbsent       Status = 121
	ErrorCudaDevice       Status = 122
	ErrorWorkspaceNull    Status = 123
	ErrorWorkspaceAlign   Status = 124
	ErrorWorkspaceSize    Status = 125
	ErrorWorkspaceOverlap Status = 126
	ErrorGradientsNull    Status = 130
	ErrorGradientsSize    Status = 131
	ErrorAccumulate       Status = 132
	ErrorGradientsNone    Status = 133
	ErrorLdDwIn           Status = 134
	ErrorLdDwOut          Status = 135
	ErrorNodesNull        Status = 136
	ErrorLogitsNull       Status = 137
	ErrorDyNull           Status = 138
	ErrorDyAlign          Status = 139
	ErrorDxAlign          Status = 140
	ErrorDwInAlign        Status = 141
	ErrorDbiasAlign       Status = 142
	ErrorDwOutAlign       Status = 143
	ErrorDxOverlap        Status = 144
	ErrorDwInOverlap      Status = 145
	ErrorDbiasOverlap     Status = 146
	ErrorDwOutOverlap     Status = 147
)

// Activation is that of a neuron.
type Activation int32

const (
	Gelu     Activation = 0
	GeluTanh Activation = 1
	Relu     Activation = 2
	Silu     Activation = 3
	Identity Activation = 4
)

// Tie is where a logit of exactly 0 goes.
type Tie int32

const (
	TieLeft  Tie = 0
	TieRight Tie = 1
)

// MaxDepth is the largest depth of a layer.
const MaxDepth = 30
