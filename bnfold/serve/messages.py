"""The protocol's gRPC messages, built from the table below in a descriptor pool of their own.

Two packages named `inference` in the default pool of one process clash, and clients bring theirs. A row is a message
and its fields: `name:type=number`, where `type*` is repeated, `{type}` a map from text and `|name:…` the next member of
the message's oneof. The numbers are the Open Inference Protocol's and, for its extensions, Triton's.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = "inference.GRPCInferenceService"

_METADATA = "name:string=1 datatype:string=2 shape:int64*=3"
_NAME_VERSION = "name:string=1 version:string=2"
_COUNTED = "compute_input:StatisticDuration=2 compute_infer:StatisticDuration=3 compute_output:StatisticDuration=4"
_TABLE = {
    "Empty": "",
    "ServerLiveResponse": "live:bool=1",
    "ServerReadyResponse": "ready:bool=1",
    "NameVersion": _NAME_VERSION,
    "ModelReadyResponse": "ready:bool=1",
    "ServerMetadataResponse": "name:string=1 version:string=2 extensions:string*=3",
    "TensorMetadata": _METADATA,
    "ModelMetadataResponse": "name:string=1 versions:string*=2 platform:string=3 inputs:TensorMetadata*=4"
                             " outputs:TensorMetadata*=5",
    "InferParameter": "|bool_param:bool=1 |int64_param:int64=2 |string_param:string=3 |double_param:double=4"
                      " |uint64_param:uint64=5",
    "InferTensorContents": "bool_contents:bool*=1 int_contents:int32*=2 int64_contents:int64*=3"
                           " uint_contents:uint32*=4 uint64_contents:uint64*=5 fp32_contents:float*=6"
                           " fp64_contents:double*=7 bytes_contents:bytes*=8",
    "InferTensor": _METADATA + " parameters:{InferParameter}=4 contents:InferTensorContents=5",
    "RequestedOutput": "name:string=1 parameters:{InferParameter}=2",
    "ModelInferRequest": "model_name:string=1 model_version:string=2 id:string=3 parameters:{InferParameter}=4"
                         " inputs:InferTensor*=5 outputs:RequestedOutput*=6 raw_input_contents:bytes*=7",
    "ModelInferResponse": "model_name:string=1 model_version:string=2 id:string=3 parameters:{InferParameter}=4"
                          " outputs:InferTensor*=5 raw_output_contents:bytes*=6",
    "ModelStreamInferResponse": "error_message:string=1 infer_response:ModelInferResponse=2",
    "ModelInput": "name:string=1 data_type:int32=2 dims:int64*=4",
    "ModelOutput": "name:string=1 data_type:int32=2 dims:int64*=3",
    "ModelConfig": "name:string=1 platform:string=2 max_batch_size:int32=4 input:ModelInput*=5 output:ModelOutput*=6"
                   " backend:string=17",
    "ModelConfigResponse": "config:ModelConfig=1",
    "StatisticDuration": "count:uint64=1 ns:uint64=2",
    "InferStatistics": "success:StatisticDuration=1 fail:StatisticDuration=2 queue:StatisticDuration=3"
                       " compute_input:StatisticDuration=4 compute_infer:StatisticDuration=5"
                       " compute_output:StatisticDuration=6",
    "InferBatchStatistics": "batch_size:uint64=1 " + _COUNTED,
    "ModelStatistics": "name:string=1 version:string=2 last_inference:uint64=3 inference_count:uint64=4"
                       " execution_count:uint64=5 inference_stats:InferStatistics=6"
                       " batch_stats:InferBatchStatistics*=7",
    "ModelStatisticsResponse": "model_stats:ModelStatistics*=1",
    "ModelRepositoryParameter": "|bool_param:bool=1 |int64_param:int64=2 |string_param:string=3 |bytes_param:bytes=4",
    "RepositoryIndexRequest": "repository_name:string=1 ready:bool=2",
    "ModelIndex": "name:string=1 version:string=2 state:string=3 reason:string=4",
    "RepositoryIndexResponse": "models:ModelIndex*=1",
    "RepositoryModelRequest": "repository_name:string=1 model_name:string=2 parameters:{ModelRepositoryParameter}=3",
    "HealthCheckRequest": "service:string=1",
    "HealthCheckResponse": "status:int32=1",
}  # fmt: skip


def _field(message: Any, text: str) -> None:
    name, _, rest = text.removeprefix("|").partition(":")
    kind, _, number = rest.partition("=")
    types = descriptor_pb2.FieldDescriptorProto
    field = message.field.add(name=name, number=int(number), label=types.LABEL_OPTIONAL)
    if text.startswith("|"):
        field.oneof_index = 0
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
    if kind.startswith("{"):
        entry = message.nested_type.add(name=f"{name.capitalize()}Entry")
        entry.options.map_entry = True
        _field(entry, "key:string=1")
        _field(entry, f"value:{kind[1:-1]}=2")
        kind = f"{message.name}.{entry.name}*"
    if kind.endswith("*"):
        field.label, kind = types.LABEL_REPEATED, kind[:-1]
    if kind.islower():
        field.type = types.Type.Value(f"TYPE_{kind.upper()}")
    else:
        field.type, field.type_name = types.TYPE_MESSAGE, f".{PACKAGE}.{kind}"


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="bnfold/inference.proto", package=PACKAGE, syntax="proto3")
    for name, fields in _TABLE.items():
        message = file.message_type.add(name=name)
        for field in fields.split():
            _field(message, field)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in _TABLE
    }


# Message classes by the name in the table.
MESSAGES: dict[str, Any] = _build()
