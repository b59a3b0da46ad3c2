// Decides what may be tagged, cached and served here: repositories on a list, and images that say where they come from.
package export_gantry_plugin_admission

import (
	. "go.bytecodealliance.org/pkg/wit/types"
	. "wit_component/gantry_plugin_admission"
	logging "wit_component/gantry_plugin_logging"
	registry "wit_component/gantry_plugin_registry"
	types "wit_component/gantry_plugin_types"
	"wit_component/policy"
)

func Admit(request AdmissionRequest) Result[Decision, PluginError] {
	repository := request.Repository
	var good bool
	switch request.Change {
	case Change_CreateTag, Change_MoveTag, Change_PushByDigest, Change_Fill:
		if !policy.Current.Lists(repository) {
			return reject(repository, "repository-not-allowed", repository+" is not on the list")
		}
		good = request.Change == Change_Fill || request.Document.IsSome() && policy.Current.SaysSource(request.Document.Some())
	case Change_ServeBlob:
		var failure *PluginError
		if good, failure = isOfAGoodImage(request); failure != nil {
			return Err[Decision](*failure)
		}
	default:
		return decided(MakeDecisionAbstain())
	}
	if good {
		return decided(MakeDecisionAccept(Accepted{}))
	}
	return reject(repository, "annotation-missing", "the image does not say "+policy.Current.Annotation)
}

// What cannot be read is no decision: the plugin fails, and the binding's `on_error` says what follows.
func isOfAGoodImage(request AdmissionRequest) (bool, *PluginError) {
	for _, parent := range request.Parents {
		stored := registry.GetManifest(request.Repository, parent)
		if stored.IsErr() {
			failure := types.MakePluginErrorUpstream("the manifest cannot be read")
			if stored.Err().Tag() == registry.ReadError_NotGranted {
				failure = types.MakePluginErrorMisconfigured("the binding does not grant reads of the registry")
			}
			return false, &failure
		}
		if policy.Current.SaysSource(stored.Ok().Document) {
			return true, nil
		}
	}
	return false, nil
}

func reject(repository, code, message string) Result[Decision, PluginError] {
	logging.Log(logging.Level_Info, "refused", []Tuple2[string, string]{{F0: "repository", F1: repository}, {F0: "reason", F1: code}})
	reason := types.Reason{Code: code, Text: message}
	return decided(MakeDecisionReject(types.Denial{Code: types.DenialCode_Denied, Reason: reason, Message: message}))
}

func decided(decision Decision) Result[Decision, PluginError] {
	return Ok[Decision, PluginError](decision)
}
