"""Weights, gradients and optimiser state shared out among the processes: for large backbones."""

runner_type = 'ddetr_plugin.ShardingRunner'
strategy = dict(
    type='ddetr_plugin.ShardingStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        auto_wrap_policy=dict(
            type='ddetr_plugin.engine.sharding.wrap_classes',
            # What is gathered at a time; a transformer backbone adds its own block here.
            names=(
                'Bottleneck',
                'DeformableTransformerEncoderLayer',
                'DeformableTransformerDecoderLayer',
            ),
        ),
    ),
    # Checkpoints hold the whole model, as without sharding.
    state_dict_cfg='full',
)
