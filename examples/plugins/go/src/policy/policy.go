// Package policy is the configuration, and what it says of manifests.
package policy

import (
	"encoding/json"
	"strings"
)

// Config is what the binding says.
type Config struct {
	Allowed    []string `json:"allowed"`    // prefixes of repositories
	Annotation string   `json:"annotation"` // the annotation an image must carry
}

// Current is the instance's, which answers one call.
var Current Config

// Lists says whether a repository is on the list.
func (config Config) Lists(repository string) bool {
	for _, prefix := range config.Allowed {
		if strings.HasPrefix(repository, prefix) {
			return true
		}
	}
	return false
}

// SaysSource says whether an image says where it comes from.
func (config Config) SaysSource(manifest string) bool {
	// A struct's fields would match keys in any case.
	var image map[string]json.RawMessage
	var annotations map[string]any
	if json.Unmarshal([]byte(manifest), &image) != nil || json.Unmarshal(image["annotations"], &annotations) != nil {
		return false
	}
	source, _ := annotations[config.Annotation].(string)
	return source != ""
}
